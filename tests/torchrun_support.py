"""A job under plain torchrun, in processes of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from curvewatch_workers.contract import EpochRecord
from curvewatch_workers.testing import read_epochs


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def train(job: Path, output: Path, ranks: int) -> list[EpochRecord]:
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        port = str(free_port())
        launcher += ["torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", port, "-m"]
    command = [*launcher, "curvewatch_workers.torchrun", str(job), "--output", str(output), "--device", "cpu"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (spool,) = output.glob("*/spool/attempt-*.jsonl")
    return read_epochs(spool)
