"""A loop of one's own as a job, on real gloo ranks."""

from __future__ import annotations

from pathlib import Path

from curvewatch_workers.contract import EpochRecord
from torchrun_support import train


def test_the_example_tells_exact_numbers_and_shows_the_samplers_padding(
    tmp_path: Path, project_root: Path
) -> None:
    job = project_root / "examples" / "own_loop"
    alone, together = train(job, tmp_path / "1", ranks=1), train(job, tmp_path / "3", ranks=3)

    def epochs(records: list[EpochRecord]) -> list[int]:
        return [record.epoch for record in records]

    assert epochs(alone) == epochs(together) == list(range(1, 11))
    assert all(record.train.exact and record.validation.exact for record in alone)
    # DistributedSampler pads 1436 samples to 1437 on three ranks: the receipt says so, and validation is whole.
    assert {record.train.samples_seen for record in together} == {1437}
    assert not any(record.train.exact for record in together)
    assert all(record.validation.exact for record in together)
    assert together[-1].validation.metrics["accuracy"].count == 361
    assert together[-1].validation.loss < 0.3
