"""The same promises for checkpoints in a folder and on a storage of another kind."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import fsspec
import pytest
import requests
from fsspec.implementations.local import LocalFileSystem
from moto.server import ThreadedMotoServer

from checkpoint_support import make_snapshot
from curvewatch_workers.checkpoint import FolderCheckpoints, Snapshot
from curvewatch_workers.drafts import Drafts
from curvewatch_workers.errors import CheckpointLostError, StorageError
from curvewatch_workers.keeping import Progress
from curvewatch_workers.ranking import Mode
from curvewatch_workers.remote import RemoteCheckpoints
from curvewatch_workers.storage import address_below, is_local, open_storage

Place: TypeAlias = FolderCheckpoints | RemoteCheckpoints
Make = Callable[..., Place]


class Gated(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A disk that writes files only while its gate is open, and not at all while it is full."""

    protocol = "gated"
    gate = threading.Event()
    reached = threading.Event()
    full = False
    locked = False

    def rm(self, *arguments: Any, **options: Any) -> None:
        if Gated.locked:
            raise PermissionError("nothing may be deleted")
        super().rm(*arguments, **options)

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "w" in mode:
            Gated.reached.set()
            assert Gated.gate.wait(60)
            if Gated.full:
                raise OSError("the disk is full")
        return super().open(path, mode, **options)


fsspec.register_implementation("gated", Gated)


@pytest.fixture(autouse=True)
def open_gate() -> Iterator[None]:
    Gated.gate.set()
    Gated.full = Gated.locked = False
    yield
    Gated.gate.set()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Return the host and port of a server that speaks S3, with an empty bucket `runs`."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "testing")
        server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        requests.put(f"http://{host}:{port}/runs", timeout=30).raise_for_status()
        yield f"{host}:{port}"
        server.stop()


@pytest.fixture(params=["folder", "memory", "gated", "s3"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Return a maker of checkpoints below one place."""
    opened: list[RemoteCheckpoints] = []

    def make_one(*, keep: int = 2, mode: Mode = "min", rank: int = 0) -> Place:
        if request.param == "folder":
            return FolderCheckpoints(tmp_path / "kept", rank=rank, keep=keep, mode=mode)
        address = f"{request.param}://{tmp_path}/kept"
        if request.param == "s3":
            server = request.getfixturevalue("s3")
            # A key of the test's own.
            address = f"s3://runs{tmp_path}/kept?endpoint_override={server}&scheme=http&region=us-east-1"
        remote = make_remote(address, tmp_path, keep=keep, mode=mode, rank=rank)
        opened.append(remote)
        return remote

    yield make_one
    for one in opened:
        one.close()


def make_remote(
    address: str, tmp_path: Path, *, keep: int = 2, mode: Mode = "min", rank: int = 0
) -> RemoteCheckpoints:
    filesystem, root = open_storage(address)
    drafts = tmp_path / "drafts"
    drafts.mkdir(exist_ok=True)
    return RemoteCheckpoints(filesystem, root, rank=rank, keep=keep, mode=mode, drafts=Drafts(drafts))


def save(checkpoints: Place, epoch: int, score: float) -> None:
    assert checkpoints.save(Progress(epoch), make_snapshot(epoch).write, score=score, last=True) is None


def test_the_best_and_the_latest_are_kept(make: Make) -> None:
    checkpoints = make(keep=2)
    for epoch, loss in enumerate([0.5, 0.2, math.nan, 0.4, 0.9], 1):
        save(checkpoints, epoch, loss)

    assert checkpoints.names() == ("epoch-000005", "epoch-000004", "epoch-000002")


def test_the_highest_may_be_the_best_and_is_known_to_the_next_attempt(make: Make) -> None:
    for epoch, accuracy in enumerate([0.5, 0.9, -math.inf, 0.4], 1):
        save(make(keep=1, mode="max"), epoch, accuracy)

    assert make().names() == ("epoch-000004", "epoch-000002")


def test_what_was_written_can_be_read(make: Make) -> None:
    save(make(), 3, 1.0)

    with make(rank=1).open("epoch-000003") as folder:
        assert Snapshot.read(folder).epoch == 3


def test_a_write_that_fails_leaves_the_older_checkpoint(make: Make, tmp_path: Path) -> None:
    checkpoints = make()
    save(checkpoints, 1, 1.0)

    def torn(folder: Path) -> None:
        (folder / "model.pt").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(Progress(2), torn, score=0.5, last=False)

    # What a full disk has no room for must not take that of the words which say so.
    assert not list(tmp_path.glob("*/.draft-*")) + list(tmp_path.glob("drafts/*"))
    assert checkpoints.names() == ("epoch-000001",)
    save(checkpoints, 2, 0.5)
    assert checkpoints.names() == ("epoch-000002", "epoch-000001")
    assert not list(tmp_path.glob("*/.draft-*")) + list(tmp_path.glob("drafts/*"))


def test_only_the_first_rank_writes(make: Make) -> None:
    save(make(rank=1), 1, 1.0)

    assert make().names() == ()


def test_an_upload_under_way_costs_training_nothing_and_the_last_waits_for_it(tmp_path: Path) -> None:
    checkpoints = make_remote(f"gated://{tmp_path}/kept", tmp_path)
    Gated.gate.clear()
    Gated.reached.clear()

    # None of these three returns if it waits for the storage.
    for epoch in (1, 2, 3):
        assert checkpoints.save(Progress(epoch), make_snapshot(epoch).write, score=1.0, last=False) is None
    # fsspec takes a folder that is made while it looks for one for a file.
    assert Gated.reached.wait(60)
    assert checkpoints.names() == ()
    assert len(list((tmp_path / "drafts").iterdir())) == 1
    threading.Timer(0.2, Gated.gate.set).start()
    save(checkpoints, 4, 1.0)

    assert checkpoints.names() == ("epoch-000004", "epoch-000001")
    checkpoints.close()


def settled(checkpoints: RemoteCheckpoints, epoch: int) -> str | None:
    """Save a checkpoint after which others may follow, once the one before is through."""
    while (upload := checkpoints._upload) is not None and not upload.future.done():
        time.sleep(0.01)
    return checkpoints.save(Progress(epoch), make_snapshot(epoch).write, score=1.0, last=False)


def test_uploads_that_fail_are_told_once_and_named_when_the_storage_is_back(tmp_path: Path) -> None:
    checkpoints = make_remote(f"gated://{tmp_path}/kept", tmp_path)
    save(checkpoints, 1, 1.0)
    Gated.full = True
    told = [settled(checkpoints, epoch) for epoch in (2, 3, 4)]
    assert checkpoints._upload is not None
    checkpoints._upload.future.exception(60)
    Gated.full = False
    told += [settled(checkpoints, epoch) for epoch in (5, 6)]
    save(checkpoints, 7, 1.0)

    assert [text is not None for text in told] == [False, True, False, False, True]
    assert "epoch-000002 could not be kept" in str(told[1])
    assert "the disk is full" in str(told[1])
    assert "epoch-000002, epoch-000003, epoch-000004 were not" in str(told[4])
    assert not list((tmp_path / "drafts").iterdir())
    checkpoints.close()


def test_the_last_checkpoint_is_never_lost_silently(tmp_path: Path) -> None:
    checkpoints = make_remote(f"gated://{tmp_path}/kept", tmp_path)
    save(checkpoints, 1, 1.0)
    Gated.full = True
    for epoch in (2, 3):
        with pytest.raises(
            CheckpointLostError, match=f"epoch-00000{epoch} could not be kept.*the disk is full"
        ):
            checkpoints.save(Progress(epoch), make_snapshot(epoch).write, score=1.0, last=True)

    assert checkpoints.names() == ("epoch-000001",)
    assert not list((tmp_path / "drafts").iterdir())
    checkpoints.close()


def test_a_checkpoint_is_kept_although_a_surplus_one_cannot_be_deleted(tmp_path: Path) -> None:
    checkpoints = make_remote(f"gated://{tmp_path}/kept", tmp_path, keep=1)
    save(checkpoints, 1, 1.0)
    Gated.locked = True

    save(checkpoints, 2, 0.5)

    assert checkpoints.names() == ("epoch-000002", "epoch-000001")
    Gated.locked = False
    save(checkpoints, 3, 0.2)
    assert checkpoints.names() == ("epoch-000003",)
    checkpoints.close()


def test_a_folder_without_its_marker_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = make_remote(f"gated://{tmp_path}/kept", tmp_path)
    save(checkpoints, 1, 1.0)
    save(checkpoints, 2, 1.0)
    (tmp_path / "kept" / "epoch-000002" / "complete.json").unlink()

    assert checkpoints.names() == ("epoch-000001",)
    save(checkpoints, 2, 1.0)
    assert checkpoints.names() == ("epoch-000002", "epoch-000001")
    checkpoints.close()


@pytest.mark.parametrize(
    ("address", "local", "place"),
    [
        ("/data/x", True, "/data/x"),
        ("file:///data/x", True, "/data/x"),
        ("memory://bucket/x", False, "/bucket/x"),
        ("s3://bucket/x?region=eu-central-1", False, "bucket/x"),
        ("gs://bucket/x", False, "bucket/x"),
    ],
)
def test_paths_and_uris_are_understood(address: str, local: bool, place: str) -> None:
    filesystem, path = open_storage(address)

    assert (is_local(filesystem), path) == (local, place)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("s4://bucket/x", "Protocol not known: s4"),
        ("s3://bucket/x?zone=1", "Unexpected query parameter in S3 URI: 'zone'"),
    ],
)
def test_a_storage_that_is_not_known_is_refused_in_one_sentence(address: str, why: str) -> None:
    with pytest.raises(StorageError) as raised:
        open_storage(address)

    assert f"checkpoints.path is '{address}', which cannot be opened: {why}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_options_of_a_uri_stay_at_its_end() -> None:
    assert address_below("/data/", "run", "epoch-1") == "/data/run/epoch-1"
    assert address_below("/what?/", "run") == "/what?/run"
    assert address_below("s3://b/x?region=r", "run") == "s3://b/x/run?region=r"
