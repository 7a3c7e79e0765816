"""The samples per second of a job beside a plain torchrun DDP script: ``python benchmarks/throughput.py``.

The plain script is what one writes by hand: DataLoader, DistributedSampler, DDP, a loss and nothing else, no metric and
no validation. The job is the whole engine with a reporter, receipts and accuracy. Both train the same convnet on the
same random images under torchrun on two ranks; their runs are interleaved, and each round gives one ratio.

The same job also runs with a service that takes two seconds for each answer, and with one that cannot be reached: what
it then loses to the job that only spools is what reporting costs. An epoch lasts from its start to that of the next, so
that what happens between two is in it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import re
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from curvewatch_workers.contract import Control, IngestAnswer
from curvewatch_workers.testing import read_epochs
from measuring import interleaved, quartiles, ratios, setting, torchrun

RANKS, BATCH = 2, 32
JOB_ALONE = "job, no service"
ANSWER_SECONDS = 2.0

MODEL = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def make():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(
        torch.randn(SAMPLES, 3, 32, 32, generator=generator), torch.randint(0, 10, (SAMPLES,), generator=generator)
    )
    return model, data
"""
JOB = """
from torch import nn, optim
from shared import make
from torch.utils.data import Subset
from curvewatch_workers.metrics import Accuracy
from curvewatch_workers.task import TrainingTask

def build():
    model, data = make()
    return TrainingTask(
        model=model, train=data, validation=Subset(data, range(2)), loss=nn.CrossEntropyLoss(),
        optimizer=optim.SGD(model.parameters(), lr=1e-3), metrics={"accuracy": Accuracy()},
    )
"""
PLAIN = """
import time
import torch
import torch.distributed as dist
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from shared import make

dist.init_process_group("gloo")
model, data = make()
model = DistributedDataParallel(model)
sampler = DistributedSampler(data)
loader = DataLoader(data, BATCH, sampler=sampler)
optimizer, loss_function = optim.SGD(model.parameters(), lr=1e-3), nn.CrossEntropyLoss()
starts = []
for epoch in range(EPOCHS):
    starts.append(time.perf_counter())
    sampler.set_epoch(epoch)
    for inputs, targets in loader:
        loss = loss_function(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
if dist.get_rank() == 0:
    for start in starts:
        print("epoch at", start)
dist.destroy_process_group()
"""
REPORTING = """
import datetime as dt
import os
import sys
from pathlib import Path
from curvewatch_workers.contract import RunLayout, WorkerJob, read_job_spec
from curvewatch_workers.torchrun import run_job

folder, output, url = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
spec = read_job_spec(folder)
job = WorkerJob(run_id=spec.name, submission=1, spec=spec, storage_path=output, service_url=url or None)
token = RunLayout(output, job.run_id).ingest_token
token.parent.mkdir(exist_ok=True)
token.write_text("token")
run_job(job, folder, gpu=False)
if os.environ["RANK"] == "0":
    print("ended at", dt.datetime.now(dt.timezone.utc).timestamp())
"""
"""The job as `curvewatch_workers.torchrun` runs it, but for the service's address, which a command line cannot give."""


class SlowService(BaseHTTPRequestHandler):
    """Answers every ingest, after a while."""

    answers = 0

    def do_POST(self) -> None:
        """Take what was sent."""
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(ANSWER_SECONDS)
        answer = IngestAnswer(control=Control.CONTINUE).model_dump_json().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        type(self).answers += 1

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def slow_service() -> Iterator[str]:
    """Give the address of a service that answers slowly."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), SlowService)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def unreachable_service() -> Iterator[str]:
    """Give an address that refuses connections: taken, so that nobody else listens there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@dataclass
class Bench:
    """The folder of the scripts, and what their runs leave beside the seconds of an epoch."""

    folder: Path
    after: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from the end of the last epoch to the end of the job, by service, of each run."""

    def plain(self) -> float:
        """Run the plain script; return the seconds of an epoch."""
        printed = torchrun(RANKS, str(self.folder / "plain.py"), folder=self.folder)
        return _epoch_seconds([float(start) for start in re.findall(r"epoch at (\S+)", printed)])

    def job(self, service: str, url: str) -> float:
        """Run the job with a service, or none; return the seconds of an epoch.

        Its validation pass of two samples is in them.
        """
        with tempfile.TemporaryDirectory() as output:
            script = str(self.folder / "reporting.py")
            printed = torchrun(RANKS, script, str(self.folder), output, url, folder=self.folder)
            (spool,) = Path(output).glob("*/spool/attempt-*.jsonl")
            records = read_epochs(spool)
        (ended,) = re.findall(r"ended at (\S+)", printed)
        end = dt.datetime.fromtimestamp(float(ended), dt.UTC)
        self.after.setdefault(service, []).append((end - records[-1].finished_at).total_seconds())
        return _epoch_seconds([record.started_at.timestamp() for record in records])


def _epoch_seconds(starts: list[float]) -> float:
    """Return the median seconds from one start to the next; the first epoch warms up."""
    return statistics.median(after - before for before, after in itertools.pairwise(starts[1:]))


def write_scripts(folder: Path, samples: int, epochs: int) -> None:
    """Write the plain script and the job."""
    (folder / "shared.py").write_text(MODEL.replace("SAMPLES", str(samples)))
    (folder / "job_code.py").write_text(JOB)
    (folder / "reporting.py").write_text(REPORTING)
    (folder / "plain.py").write_text(PLAIN.replace("EPOCHS", str(epochs)).replace("BATCH", str(BATCH)))
    (folder / "job.yaml").write_text(
        f"name: throughput\ncode: {{task: 'job_code:build'}}\n"
        f"training: {{epochs: {epochs}, global_batch_size: {RANKS * BATCH}}}\n"
        "checkpoints: {every_epochs: 1000}\n"
    )


def print_tables(seconds: dict[str, list[float]], bench: Bench, samples: int) -> None:
    """Print what was measured of the plain script and of the job by its service."""
    print("| samples per second, by the plain script's | median and quartiles |\n|---|---|")
    for name in ("plain again", JOB_ALONE):
        print(f"| {name} | {ratios(seconds, 'plain', name)} |")
    rate = samples / statistics.median(seconds["plain"])
    print(f"\nThe plain script trained {rate:.0f} samples a second.\n")
    print(
        "| | seconds of an epoch, by those of the job with no service | seconds lost in an epoch | "
        "seconds from the last epoch to the end |\n|---|---|---|---|"
    )
    for name in sorted(bench.after.keys() - {JOB_ALONE}):
        ends = bench.after[name]
        lost = quartiles([a - b for a, b in zip(seconds[name], seconds[JOB_ALONE], strict=True)])
        print(f"| {name} | {ratios(seconds, name, JOB_ALONE)} | {lost} | {statistics.median(ends):.1f} |")
    print(f"\nThe slow service gave {SlowService.answers} answers in all runs.")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=7, help="epochs of a run, at least 3")
    parser.add_argument("--samples", type=int, default=2048)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, slow_service() as slow, unreachable_service() as nowhere:
        bench = Bench(Path(name))
        write_scripts(bench.folder, options.samples, options.epochs)
        services = {
            JOB_ALONE: "",
            "job again, no service": "",
            f"job, service that answers after {ANSWER_SECONDS:.0f} s": slow,
            "job, service that refuses connections": nowhere,
        }
        timed = {"plain": bench.plain, "plain again": bench.plain}
        timed |= {service: partial(bench.job, service, url) for service, url in services.items()}
        seconds = interleaved(timed, rounds=options.rounds, warm_up=0)
    print(setting())
    print(
        f"convnet, {options.samples} images of 32x32, {RANKS} gloo ranks, batches of {BATCH} on each; "
        f"{options.rounds} rounds of runs of {options.epochs} epochs.\n"
    )
    print_tables(seconds, bench, options.samples)


if __name__ == "__main__":
    main()
