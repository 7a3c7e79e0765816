"""The spool: complete lines, each once, whatever else is in the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from curvewatch_service.spool import BAD_FILE, BAD_LINE, BATCH, SpoolReader
from curvewatch_workers.contract import Control, IngestMessage
from reconcile_support import World
from store_support import attempt_message, epoch_message, new_run


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    built = World.build(tmp_path)
    new_run(built.store)
    yield built
    built.store.close()


@pytest.fixture
def reader(world: World) -> SpoolReader:
    return SpoolReader(world.store, world.settings.storage_path)


def _epochs(world: World) -> list[int]:
    return [record.epoch for record in world.store.epochs("digits-1")]


def test_a_run_without_a_spool_has_nothing_to_take(reader: SpoolReader) -> None:
    assert reader.ingest("digits-1") == 0


def test_each_line_is_taken_once_and_what_is_appended_later_too(world: World, reader: SpoolReader) -> None:
    world.spool(attempt_message(1), epoch_message(1))
    assert reader.ingest("digits-1") == 2
    assert reader.ingest("digits-1") == 0
    world.spool(epoch_message(2))
    assert reader.ingest("digits-1") == 1
    assert _epochs(world) == [1, 2]


def test_a_torn_last_line_waits_for_its_end(world: World, reader: SpoolReader) -> None:
    line = epoch_message(2).model_dump_json() + "\n"
    world.spool(epoch_message(1))
    world.spool_text(line[:50])
    assert reader.ingest("digits-1") == 1
    world.spool_text(line[50:])
    assert reader.ingest("digits-1") == 1
    assert _epochs(world) == [1, 2]
    assert reader.bad_lines("digits-1") == 0


def test_lines_that_cannot_be_read_are_counted_told_once_and_passed(
    world: World, reader: SpoolReader
) -> None:
    world.spool(epoch_message(1))
    world.spool_text('{"kind": "epoch"}\n\nnot json\n{"kind": "from the future"}\n\xff\n')
    world.spool(epoch_message(2))
    reader.ingest("digits-1")
    assert _epochs(world) == [1, 2]
    assert reader.bad_lines("digits-1") == 4
    # A new start reads the file again, and does not tell it again.
    SpoolReader(world.store, world.settings.storage_path).ingest("digits-1")
    assert world.reasons().count(BAD_LINE) == 1


def test_a_message_of_another_run_does_not_cost_its_neighbours(world: World, reader: SpoolReader) -> None:
    world.spool(epoch_message(1), epoch_message(2, run_id="other"), epoch_message(3))
    reader.ingest("digits-1")
    assert _epochs(world) == [1, 3]
    assert reader.bad_lines("digits-1") == 1
    assert BAD_LINE in world.reasons()


def test_more_than_a_batch_of_several_files(world: World, reader: SpoolReader) -> None:
    world.spool(*(epoch_message(epoch) for epoch in range(1, BATCH + 2)), source="attempt-1")
    world.spool(*(epoch_message(epoch) for epoch in range(BATCH + 2, BATCH + 10)), source="attempt-2")
    assert reader.ingest("digits-1") == BATCH + 9
    assert _epochs(world) == list(range(1, BATCH + 10))


def test_what_the_store_could_not_take_is_read_again(world: World, reader: SpoolReader) -> None:
    world.spool(epoch_message(1))
    ingest = world.store.ingest

    def locked(*_: object) -> None:
        raise OperationalError("INSERT", {}, Exception("database is locked"))

    world.store.ingest = locked  # type: ignore[method-assign, assignment]
    with pytest.raises(OperationalError, match="locked"):
        reader.ingest("digits-1")
    world.store.ingest = ingest  # type: ignore[method-assign]
    assert reader.ingest("digits-1") == 1
    assert _epochs(world) == [1]


def test_a_message_that_breaks_the_ingest_does_not_block_those_behind_it(
    world: World, reader: SpoolReader
) -> None:
    ingest = world.store.ingest

    def breaks_on_epoch_two(run_id: str, messages: Sequence[IngestMessage]) -> Control:
        if any(message.kind == "epoch" and message.record.epoch == 2 for message in messages):
            raise OverflowError("date value out of range")
        return ingest(run_id, messages)

    world.store.ingest = breaks_on_epoch_two  # type: ignore[method-assign]
    world.spool(epoch_message(1), epoch_message(2), epoch_message(3))
    reader.ingest("digits-1")
    assert _epochs(world) == [1, 3]
    assert reader.bad_lines("digits-1") == 1
    [told] = [event for event in world.store.events("digits-1") if event.reason == BAD_LINE]
    assert "OverflowError: date value out of range" in told.message


def test_a_file_that_cannot_be_read_is_told_once_and_the_others_are_taken(
    world: World, reader: SpoolReader
) -> None:
    broken = world.spool(epoch_message(1), source="attempt-1").with_name("attempt-0.jsonl")
    broken.mkdir()
    for _ in range(2):
        reader.ingest("digits-1")
    SpoolReader(world.store, world.settings.storage_path).ingest("digits-1")
    assert _epochs(world) == [1]
    assert world.reasons().count(BAD_FILE) == 1
    # It can be read again.
    broken.rmdir()
    world.spool(epoch_message(2), source="attempt-0")
    reader.ingest("digits-1")
    assert _epochs(world) == [1, 2]
