"""TensorBoard's event files, in `tensorboard/`. Its scalars are float32: seven digits."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from curvewatch_workers.trackers.points import Point, flat_settings
from curvewatch_workers.trackers.tracker import TrackedRun


class TensorBoardTracker:
    """Writes one event file an attempt, and removes those of earlier attempts."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._folder = run.folder / "tensorboard"
        self._writer: SummaryWriter | None = None

    def rewrite(self, curve: Sequence[Point]) -> None:
        """Write a new event file, then remove the old ones."""
        self.close()
        old = list(self._folder.glob("events.out.tfevents.*"))
        # A TensorBoard that has the old files loaded forgets them at this step; one started later does not see them.
        writer = self._writer = SummaryWriter(str(self._folder), purge_step=0)
        settings, compared = flat_settings(self._run.spec), dict.fromkeys(("train/loss", "validation/loss"))
        for summary in hparams(settings, compared):  # type: ignore[no-untyped-call]  # the library has no types here
            writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]  # nor here
        for point in curve:
            _write(writer, point)
        writer.flush()
        for path in old:
            path.unlink()

    def append(self, point: Point) -> None:
        """Write an epoch; it can be read when this returns."""
        if self._writer is not None:
            _write(self._writer, point)
            self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def _write(writer: SummaryWriter, point: Point) -> None:
    for name, value in point.values.items():
        writer.add_scalar(name, value, global_step=point.epoch, walltime=point.time.timestamp())
