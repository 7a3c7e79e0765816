"""How far the validation numbers that each approach reports are from the truth: ``python benchmarks/correctness.py``.

The truth is one process in float64 that sees each of the 361 validation samples of ``examples/digits`` once. 361 is
divisible by none of 2, 3 and 4, so a sampler that pads shows; batches of 32 leave a short last one, so a mean of means
shows. The model is trained for one epoch, the same for all; the approaches are in ``approaches.py``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch.nn import functional

from approaches import BATCH, MODEL, REPORTS, Report, digits
from measuring import setting, torchrun
from peers import PACKAGES

RANKS = (1, 2, 3, 4)


def truth(folder: Path) -> Report:
    """Train the model, keep it in the folder, and return what is true of it."""
    model, train, validation = digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    for batch in torch.split(order, 64):
        inputs, targets = train[batch]
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(inputs), targets))
        optimizer.step()
    torch.save(model.state_dict(), folder / MODEL)
    inputs, targets = validation.tensors
    with torch.inference_mode():
        outputs = model.eval().double()(inputs.double())
    right = (outputs.argmax(1) == targets).double()
    return Report(functional.cross_entropy(outputs, targets).item(), right.mean().item(), len(targets))


def reports_of(ranks: int, folder: Path) -> dict[str, Report]:
    """Return what each approach reports on so many ranks."""
    torchrun(ranks, str(Path(__file__).with_name("approaches.py")), str(folder))
    reports = json.loads((folder / REPORTS).read_text(encoding="utf-8"))
    return {name: Report(**report) for name, report in reports.items()}


def cell(report: Report, true: Report) -> str:
    """Return the errors of a report as text."""
    loss = abs(report.loss - true.loss) / true.loss
    return f"{loss:.0e} / {abs(report.accuracy - true.accuracy):.0e} / {report.samples}"


def main() -> None:
    """Measure and print the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        true = truth(folder)
        reports = {ranks: reports_of(ranks, folder) for ranks in RANKS}
    print(setting(*PACKAGES))
    print(
        f"One process in float64: loss {true.loss:.9f}, accuracy {true.accuracy:.9f}, {true.samples} samples. "
        f"gloo, batches of {BATCH} on each rank. In each cell: relative error of the loss / error of the accuracy / "
        "samples that were counted.\n"
    )
    print(f"| approach | {' | '.join('1 rank' if ranks == 1 else f'{ranks} ranks' for ranks in RANKS)} |")
    print(f"|{'---|' * (1 + len(RANKS))}")
    for approach in reports[1]:
        print(f"| {approach} | {' | '.join(cell(reports[ranks][approach], true) for ranks in RANKS)} |")


if __name__ == "__main__":
    main()
