"""The epochs that earlier attempts of a run have told, read from their spools."""

from __future__ import annotations

import logging

from pydantic import TypeAdapter, ValidationError

from curvewatch_workers.contract import EpochFinished, EpochRecord, IngestMessage, RunLayout

_MESSAGE: TypeAdapter[IngestMessage] = TypeAdapter(IngestMessage)
logger = logging.getLogger(__name__)


def told_before(layout: RunLayout, after_epoch: int | None) -> tuple[EpochRecord, ...]:
    """Return the run's curve up to an epoch: each epoch of the highest attempt that has told it, in order.

    Args:
        layout: The run's files.
        after_epoch: The last epoch that is wanted; None takes all up to the end of the latest attempt that told any.
    """
    curve: dict[int, EpochRecord] = {}
    for record in _told(layout):
        known = curve.get(record.epoch)
        if known is None or record.attempt >= known.attempt:
            curve[record.epoch] = record
    latest = max((record.attempt for record in curve.values()), default=0)
    last = max((epoch for epoch, record in curve.items() if record.attempt == latest), default=0)
    return tuple(
        curve[epoch] for epoch in sorted(curve) if epoch <= (last if after_epoch is None else after_epoch)
    )


def _told(layout: RunLayout) -> list[EpochRecord]:
    records = []
    for path in sorted(layout.spool.glob("attempt-*.jsonl")):
        try:
            lines = path.read_bytes().splitlines()
        except OSError:
            logger.warning("Could not read %s", path, exc_info=True, extra={"action": "spool_unread"})
            continue
        for line in lines:
            try:
                message = _MESSAGE.validate_json(line)
            except ValidationError:
                continue  # torn by a crash; the service tells of it
            if isinstance(message, EpochFinished):
                records.append(message.record)
    return records
