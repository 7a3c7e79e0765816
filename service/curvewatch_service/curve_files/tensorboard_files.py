"""Curves in the event files of TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from curvewatch_service.curve_files.table import Point
from curvewatch_service.errors import CurveFileError
from curvewatch_workers.diagnosis import VALIDATION_SPLITS


def tensorboard_points(path: Path, files: Sequence[Path]) -> dict[str, list[Point]]:
    """Read the scalars of event files, by run: a run is a folder, with the splits that have folders of their own.

    Args:
        path: What the user named: an event file, or a folder above them.
        files: The event files.

    Raises:
        CurveFileError: TensorBoard is not installed.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise CurveFileError(
            f"{path} holds events of TensorBoard, which is not installed; pip install 'curvewatch[tensorboard]'"
        ) from None
    runs: dict[Path, list[Point]] = {}
    for source in [path] if path.is_file() else sorted({file.parent for file in files}):
        accumulator = EventAccumulator(str(source), size_guidance={"scalars": 0})
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            key, of_parent = _key(source, tag)
            inside = of_parent and source != path
            points = runs.setdefault(source.parent if inside else source, [])
            points += [
                Point(key, event.step, event.wall_time, event.value) for event in accumulator.Scalars(tag)
            ]
    alone = len(runs) == 1
    return {"" if alone else folder.relative_to(path).as_posix(): points for folder, points in runs.items()}


def _key(source: Path, tag: str) -> tuple[str, bool]:
    """Return the name of a series, and whether it belongs to the run of the folder above."""
    if (
        source.name in VALIDATION_SPLITS
    ):  # Keras writes the splits into folders of their own, under the same tags.
        return f"{source.name}/{tag.removeprefix('epoch_')}", True
    if source.name == "train":
        return tag, True
    flat = tag.replace("/", "_")
    if source.name.startswith(f"{flat}_"):  # SummaryWriter.add_scalars makes a folder for each of them.
        return source.name, True
    return tag, False
