"""A loop of one's own as a job, on real gloo ranks."""

from __future__ import annotations

from pathlib import Path

from torchrun_support import train


def test_the_example_tells_exact_numbers_and_shows_the_samplers_padding(
    tmp_path: Path, project_root: Path
) -> None:
    job = project_root / "examples" / "own_loop"
    together = train(job, tmp_path, ranks=3)

    assert [record.epoch for record in together] == list(range(1, 11))
    # DistributedSampler pads 1436 samples to 1437 on three ranks: the receipt says so, and validation is whole.
    assert {record.train.samples_seen for record in together} == {1437}
    assert not any(record.train.exact for record in together)
    assert all(record.validation.exact for record in together)
    assert together[-1].validation.metrics["accuracy"].count == 361
    assert together[-1].validation.loss < 0.3
