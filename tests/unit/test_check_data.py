"""What the check of a job says of its data: samples in both splits, lengths, streams."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import Dataset

from check_support import report_of, told
from curvewatch_workers import inspection
from curvewatch_workers.sources import Source

TEXTS = (
    "collate = lambda rows: ([text for text, _ in rows], torch.tensor([label for _, label in rows]))\n"
    "    class Lengths(nn.Module):\n"
    "        def __init__(self):\n"
    "            super().__init__(); self.layer = nn.Linear(1, 3)\n"
    "        def forward(self, texts):\n"
    "            return self.layer(torch.tensor([[float(len(text))] for text in texts]).reshape(-1, 1))\n"
)


@pytest.mark.parametrize(
    ("body", "shared"),
    [
        # Numpy knows neither of these two types.
        ("rows = [(torch.randn(4).bfloat16(), i % 3) for i in range(73)]", 0),
        ("rows = [(torch.full((4,), i, dtype=torch.uint16), i % 3) for i in range(73)]", 0),
        ("rows = [(torch.randn(4).bfloat16(), i % 3) for i in range(73)]; rows[50:] = rows[:23]", 23),
    ],
)
def test_samples_of_any_type_are_compared(tmp_path: Path, body: str, shared: int) -> None:
    model = "model = nn.Sequential(nn.Linear(4, 3)); model[0].register_forward_pre_hook(lambda _, x: x[0].float())"
    report = report_of(
        tmp_path,
        f"{body}\n    {model}\n    return task(model=model, train=Rows(rows[:50]), validation=Rows(rows[50:]))",
    )

    expected = [] if not shared else [f"{shared} of 23 validation samples that were read are train samples"]
    assert report.good
    assert len(report.findings) == len(expected), told(report)
    assert all(part in one.message for part, one in zip(expected, report.findings, strict=True))


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ("[('x' * i, i % 3) for i in range(73)]", 0),
        ("[('x' * (i % 50), i % 3 if i < 50 else (i - 50) % 3) for i in range(73)]", 23),
        # Objects of which nothing is known cannot be compared.
        ("[(type('Text', (list,), {'__slots__': ()})('x' * 5), i % 3) for i in range(73)]", 0),
    ],
)
def test_samples_that_are_no_tensors_are_compared_or_left_alone(
    tmp_path: Path, rows: str, shared: int
) -> None:
    report = report_of(
        tmp_path,
        f"{TEXTS}    rows = {rows}\n"
        "    return task(model=Lengths(), collate=collate, train=Rows(rows[:50]), validation=Rows(rows[50:]))",
        workers=1,
    )

    assert report.good, told(report)
    assert ["23 of 23 validation samples" in one.message for one in report.findings] == [True] * bool(shared)


SAMPLED = (
    "from torch.utils.data import DataLoader, SubsetRandomSampler\n"
    "    rows = Rows([(torch.randn(4), i % 3 if i < 60 else 7) for i in range(73)])\n"
    "    loader = lambda drawn, size: DataLoader(rows, batch_size=size, sampler=SubsetRandomSampler(drawn))\n"
)


def test_one_dataset_may_be_split_by_samplers(tmp_path: Path) -> None:
    # Nor is a label looked at that no epoch draws.
    report = report_of(
        tmp_path,
        f"{SAMPLED}    return task(train=loader(range(40), 16), validation=loader(range(40, 60), 16))",
        workers=1,
    )

    assert told(report) == []


def test_samplers_that_draw_the_same_are_told(tmp_path: Path) -> None:
    report = report_of(
        tmp_path,
        f"{SAMPLED}    return task(train=loader(range(40), 16), validation=loader(range(35, 73), 16))",
        workers=1,
    )

    labels, shared = (message for _, message in told(report))
    assert "TrainingTask.validation has labels that are no class of the model (7)" in labels
    assert "5 of 38 validation samples" in shared


def test_the_processes_of_a_loader_are_not_forked_where_samples_were_read(tmp_path: Path) -> None:
    # A file that was opened at the first sample would be open in each, at one position.
    report = report_of(
        tmp_path,
        "class Here(Rows):\n"
        "        def __getitem__(self, index):\n"
        "            assert torch.utils.data.get_worker_info() is None\n"
        "            return self.rows[index]\n"
        "    loader = DataLoader(Here(list(data(40, 3))), batch_size=16, num_workers=1)\n"
        "    return task(train=loader)",
        workers=1,
    )

    assert told(report) == []


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_length_that_no_sample_answers_for_is_told(tmp_path: Path, split: str) -> None:
    report = report_of(tmp_path, f"return task({split}=Rows(list(data(49, 3)), length=60))")

    assert told(report) == [
        (
            "error",
            f"TrainingTask.{split} has a length of 60, but its sample 59 raises IndexError: list index out of range; "
            "make __len__ the number of samples that __getitem__ gives, from 0",
        )
    ]


@pytest.mark.parametrize(
    ("changes", "severity", "message"),
    [
        ("train=Stream(list(data(48, 1)))", None, ""),
        (
            "train=Stream(list(data(48, 1)), sharded=False)",
            "error",
            r"TrainingTask.train: shard\(0, 2\) and shard\(1, 2\) begin with the same samples",
        ),
        (
            "validation=Stream(list(data(48, 3)), sharded=False)",
            "error",
            r"TrainingTask.validation: shard\(0, 2\) and shard\(1, 2\) begin with the same samples",
        ),
        (
            "train=Stream(list(data(48, 1)), length=50)",
            "warning",
            "TrainingTask.train has a length of 50, but its 2 shards hold 48 samples: no receipt will be exact",
        ),
        (
            "train=Stream(list(data(48, 1)), length=40)",
            "warning",
            "TrainingTask.train has a length of 40, but its 2 shards hold 48 samples",
        ),
        (
            "train=Stream(Endless(), length=40)",
            "warning",
            "TrainingTask.train has a length of 40, but its 2 shards hold 82 samples or more: no receipt",
        ),
        (
            "train=Stream(list(data(1, 1)))",
            "error",
            "the shards of 1 of 2 workers hold no sample",
        ),
        ("validation=Stream(list(data(1, 1)))", None, ""),
    ],
)
def test_the_shards_of_a_stream_are_looked_at(
    tmp_path: Path, changes: str, severity: str | None, message: str
) -> None:
    report = report_of(tmp_path, f"return task({changes})", workers=2)

    assert [one for one, _ in told(report)] == [severity] * (severity is not None), told(report)
    assert all(re.search(message, one.message) for one in report.findings), told(report)


def test_a_loss_of_ones_own_may_have_its_classes_anywhere(tmp_path: Path) -> None:
    body = (
        "class ByToken(nn.Module):\n"
        "        ignore_index = -100\n"
        "        def forward(self, outputs, targets):\n"
        "            return nn.functional.cross_entropy(outputs.movedim(-1, 1), targets, reduction='none')\n"
        "    rows = [(torch.randint(5, (2,)), torch.tensor([3, 4])) for _ in range(73)]\n"
        "    model = nn.Embedding(5, 5)\n"
        "    return task(model=model, loss=ByToken(), train=Rows(rows[:50]), validation=Rows(rows[50:]))"
    )

    assert report_of(tmp_path, body, workers=1).good


def test_the_shards_of_one_worker_need_not_differ_by_chance(tmp_path: Path) -> None:
    """Data that is all the same has the same samples in every shard."""
    report = report_of(tmp_path, "return task(train=Stream([(torch.ones(4), 1)] * 48))", workers=2)

    assert report.findings == ()


def test_a_model_that_needs_two_samples_is_not_asked_for_its_classes_with_one(tmp_path: Path) -> None:
    body = (
        "model = nn.Linear(4, 3); model.register_forward_hook(lambda _m, _i, outputs: outputs.squeeze())\n"
        "    return task(model=model, train=data(48, 1), validation=data(24, 2))"
    )

    assert report_of(tmp_path, body, workers=1).findings == ()


class Slow(Dataset[Any]):
    """Takes a second for each sample, of a clock that the test reads."""

    def __init__(self) -> None:
        self.seconds, self.read = 0.0, list[int]()

    def __len__(self) -> int:
        return 50_000

    def __getitem__(self, index: int) -> tuple[float, int]:
        self.seconds += 1
        self.read.append(index)
        return float(index), 0


def test_samples_that_take_long_are_looked_at_until_it_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    monkeypatch.setattr(inspection, "monotonic", lambda: slow.seconds)
    train = Source(split="train", dataset=slow)

    shared = inspection.shared_samples(train, Source(split="validation", dataset=slow))

    number = int(inspection.MOST_SECONDS) + 1
    assert len(slow.read) == 2 * number
    # From everywhere in the data, and of equal splits the same.
    assert max(slow.read) > 40_000
    assert shared is not None
    assert f"{number} of {number} validation samples that were read" in shared
