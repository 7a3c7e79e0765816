"""The samples per second of a job beside a plain torchrun DDP script: ``python benchmarks/throughput.py``.

The plain script is what one writes by hand: DataLoader, DistributedSampler, DDP, a loss and nothing else, no metric and
no validation. The job is the whole engine with a reporter, receipts, accuracy and a validation pass of two samples.
Both train the same convnet on the same random images, in the same two processes of one torchrun, in turn: in the middle
of each epoch of the job the script trains two epochs of its own. Between processes the speed of a machine differs by
more than what is looked for here. What is left of that is told by the script's second epoch beside its first, and by
the job that runs again.

The job also runs with a service that takes two seconds for each answer, and with one that cannot be reached. An epoch
of the job lasts from its start to that of the next, without the script's, so that what happens between two is in it.
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

from curvewatch_workers.contract import Control, EpochRecord, IngestAnswer
from curvewatch_workers.testing import read_epochs
from measuring import interleaved, quartiles, setting, torchrun

BATCH = 32
"""Samples of a batch on each rank."""
ANSWER_SECONDS = 2.0

SHARED = """
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
PLAIN = """
import time
import torch
import torch.distributed as dist
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from shared import make

class Script:
    def __init__(self):
        self.device = torch.device("DEVICE")
        model, data = make()
        model = model.to(self.device)
        self.model = DistributedDataParallel(model) if dist.is_initialized() else model
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if dist.is_initialized() else 0
        self.sampler = DistributedSampler(data, ranks, rank)
        self.loader = DataLoader(data, BATCH, sampler=self.sampler, pin_memory=self.device.type == "cuda")
        self.optimizer, self.loss = optim.SGD(self.model.parameters(), lr=1e-3), nn.CrossEntropyLoss()
        self.epochs = 0

    def train_epoch(self):
        start = time.perf_counter()
        self.sampler.set_epoch(self.epochs)
        for inputs, targets in self.loader:
            inputs = inputs.to(self.device, non_blocking=True)
            targets = targets.to(self.device, non_blocking=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                outputs = self.model(inputs)
            loss = self.loss(outputs.float(), targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.epochs += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start
"""
JOB = """
import os
import time
import torch
from torch import nn, optim
from plain import Script
from shared import make
from torch.utils.data import Subset
from curvewatch_workers.metrics import Accuracy
from curvewatch_workers.task import TrainingTask

STEPS = SAMPLES // (BATCH * int(os.environ["WORLD_SIZE"]))

class ScriptBetween:
    # Trains two epochs of the script after half of the steps of each epoch.
    def __init__(self):
        self.steps, self.script = 0, None

    def __call__(self, *_):
        self.steps += 1
        if self.steps % STEPS == STEPS // 2:
            if GPU:
                torch.cuda.synchronize()  # what the job has queued is the job's
            start = time.perf_counter()
            self.script = self.script or Script()
            seconds = self.script.train_epoch(), self.script.train_epoch()
            if os.environ["RANK"] == "0":
                print("script", *seconds, time.perf_counter() - start)

def build():
    model, data = make()
    optimizer = optim.SGD(model.parameters(), lr=1e-3)
    optimizer.register_step_post_hook(ScriptBetween())
    return TrainingTask(
        model=model, train=data, validation=Subset(data, range(2)), loss=nn.CrossEntropyLoss(), optimizer=optimizer,
        metrics={"accuracy": Accuracy()},
    )
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
run_job(job, folder, gpu=GPU)
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
    """The folder of the scripts, and what the runs of the job measured, by its service."""

    folder: Path
    ranks: int
    job: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of each epoch of the job by those of the two epochs of the script beside it."""
    script: list[float] = field(default_factory=list)
    """Seconds of each second epoch of the script by those of the first."""
    rate: list[float] = field(default_factory=list)
    """Seconds of each epoch of the script."""
    after: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from the end of the last epoch to the end of the job, of each run."""

    def run(self, service: str, url: str) -> float:
        """Run the job with a service, or none; return its seconds."""
        clock = time.perf_counter()
        with tempfile.TemporaryDirectory() as output:
            script = str(self.folder / "reporting.py")
            printed = torchrun(self.ranks, script, str(self.folder), output, url, folder=self.folder)
            (spool,) = Path(output).glob("*/spool/attempt-*.jsonl")
            self._take(service, printed, read_epochs(spool))
        return time.perf_counter() - clock

    def _take(self, service: str, printed: str, records: list[EpochRecord]) -> None:
        starts = [record.started_at.timestamp() for record in records]
        beside = [
            tuple(map(float, line.split())) for line in re.findall(r"^script (.+)", printed, re.MULTILINE)
        ]
        # The first epoch warms up, the last is followed by none.
        measured = list(zip(itertools.pairwise(starts), beside, strict=False))[1:]
        for (start, end), (first, second, whole) in measured:
            self.job.setdefault(service, []).append((end - start - whole) / ((first + second) / 2))
            self.script.append(second / first)
            self.rate += [first, second]
        (ended,) = re.findall(r"ended at (\S+)", printed)
        end_of_job = dt.datetime.fromtimestamp(float(ended), dt.UTC)
        self.after.setdefault(service, []).append((end_of_job - records[-1].finished_at).total_seconds())

    def print_tables(self, samples: int) -> None:
        """Print what was measured."""
        print(
            "| | samples per second, by the script's | seconds from the last epoch to the end |\n|---|---|---|"
        )
        print(f"| the script's second epoch, by its first | {_faster(self.script)} | |")
        for service, by_script in self.job.items():
            print(f"| {service} | {_faster(by_script)} | {statistics.median(self.after[service]):.1f} |")
        print(f"\nThe script trained {samples / statistics.median(self.rate):.0f} samples a second.")
        print(f"The slow service gave {SlowService.answers} answers in all runs.")


def _faster(seconds: list[float]) -> str:
    return str(quartiles([1 / each for each in seconds]))


def write_scripts(folder: Path, *, samples: int, epochs: int, ranks: int, device: str) -> None:
    """Write the plain script and the job."""
    known = {"SAMPLES": samples, "BATCH": BATCH, "DEVICE": device, "GPU": device == "cuda"}
    scripts = {"shared": SHARED, "plain": PLAIN, "job_code": JOB, "reporting": REPORTING}
    for name, text in scripts.items():
        for word, value in known.items():
            text = re.sub(rf"\b{word}\b", str(value), text)
        (folder / f"{name}.py").write_text(text)
    precision = "bf16" if device == "cuda" else "fp32"
    (folder / "job.yaml").write_text(
        f"name: throughput\ncode: {{task: 'job_code:build'}}\n"
        f"training: {{epochs: {epochs}, global_batch_size: {ranks * BATCH}, precision: {precision}}}\n"
        "checkpoints: {every_epochs: 1000}\n"
    )


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5, help="epochs of a run, at least 3")
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="on cuda in bf16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, slow_service() as slow, unreachable_service() as nowhere:
        bench = Bench(Path(name), options.ranks)
        write_scripts(
            bench.folder,
            samples=options.samples,
            epochs=options.epochs,
            ranks=options.ranks,
            device=options.device,
        )
        services = {
            "job, no service": "",
            "job again, no service": "",
            f"job, service that answers after {ANSWER_SECONDS:.0f} s": slow,
            "job, service that refuses connections": nowhere,
        }
        timed = {service: partial(bench.run, service, url) for service, url in services.items()}
        interleaved(timed, rounds=options.rounds, warm_up=0)
    print(setting())
    print(
        f"convnet, {options.samples} images of 32x32, {options.ranks} ranks on {options.device}, batches of {BATCH} "
        f"on each; {options.rounds} runs of {options.epochs} epochs with each service; median and quartiles of the "
        "epochs.\n"
    )
    bench.print_tables(options.samples)


if __name__ == "__main__":
    main()
