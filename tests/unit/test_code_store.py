"""Zipped code folders: the same content gives the same bytes, and what could do harm is refused."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import zipfile
from pathlib import Path
from random import Random

import pytest

from curvewatch_service.code import CodeLimits, CodeStore, require_task_module, zip_folder
from curvewatch_service.errors import CodeBundleError, TooLargeError
from curvewatch_workers.contract import CodeSpec


def _folder(root: Path) -> Path:
    (root / "jobs").mkdir(parents=True)
    (root / "digits.py").write_text("def build(): ...\n")
    (root / "jobs" / "other.py").write_text("x = 1\n")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o750)
    return root


def _archive(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    return packed.getvalue()


def _names(zip_bytes: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(zip_bytes)).namelist()


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = _folder(tmp_path / "first"), _folder(tmp_path / "second")
    os.utime(second / "digits.py", (1_000_000_000, 1_000_000_000))
    assert zip_folder(first) == zip_folder(second)
    (second / "digits.py").write_text("def build(): return 1\n")
    assert zip_folder(first) != zip_folder(second)


def test_history_environments_and_caches_stay(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "code")
    for name in (".git/config", ".venv/bin/python", "jobs/__pycache__/other.pyc", "stale.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    assert _names(zip_folder(folder)) == ["digits.py", "jobs/other.py", "run.sh"]


def test_programs_stay_programs(tmp_path: Path) -> None:
    archive = zipfile.ZipFile(io.BytesIO(zip_folder(_folder(tmp_path / "code"))))
    modes = {entry.filename: stat.S_IMODE(entry.external_attr >> 16) for entry in archive.infolist()}
    assert (modes["run.sh"], modes["digits.py"]) == (0o755, 0o644)


def test_a_link_to_a_file_travels_as_the_file(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "code")
    (tmp_path / "shared.py").write_text("y = 2\n")
    (folder / "shared.py").symlink_to(tmp_path / "shared.py")
    zip_bytes = zip_folder(folder)
    assert zipfile.ZipFile(io.BytesIO(zip_bytes)).read("shared.py") == b"y = 2\n"
    assert CodeStore(tmp_path / "kept").put(zip_bytes) == hashlib.sha256(zip_bytes).hexdigest()


@pytest.mark.parametrize("target", ["/", "nowhere"])
def test_a_link_to_a_folder_or_to_nothing_is_refused(tmp_path: Path, target: str) -> None:
    folder = _folder(tmp_path / "code")
    (folder / "data").symlink_to(target)
    with pytest.raises(CodeBundleError, match=r"data is a link to a folder or to nothing.*params"):
        zip_folder(folder)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "code")
    os.mkfifo(folder / "pipe")
    with pytest.raises(CodeBundleError, match="pipe is neither a file nor a folder"):
        zip_folder(folder)


def test_a_folder_beyond_the_limits_is_refused_before_it_is_zipped(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "code")
    with pytest.raises(TooLargeError, match="3 files, the limit is 2"):
        zip_folder(folder, limits=CodeLimits(max_files=2))
    (folder / "weights.bin").write_bytes(bytes(5000))
    with pytest.raises(
        TooLargeError, match=r"the limit is 1000 bytes.*largest file is weights.bin with 5000"
    ):
        zip_folder(folder, limits=CodeLimits(max_bytes=100))


def test_code_is_kept_once_under_its_hash(tmp_path: Path) -> None:
    store, zip_bytes = CodeStore(tmp_path / "code"), zip_folder(_folder(tmp_path / "digits"))
    sha256 = store.put(zip_bytes)
    kept = tmp_path / "code" / f"{sha256}.zip"
    before = kept.stat()
    assert store.put(zip_bytes) == sha256 == hashlib.sha256(zip_bytes).hexdigest()
    assert (kept.stat().st_ino, kept.read_bytes()) == (before.st_ino, zip_bytes)
    assert list((tmp_path / "code").iterdir()) == [kept]


def _link() -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("data")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


def _odd_compression() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("digits.py", "x")
    return packed.getvalue()


def _flagged(flag: int) -> bytes:
    zip_bytes = bytearray(_archive(("digits.py", b"x")))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        zip_bytes[zip_bytes.index(signature) + offset] |= flag
    return bytes(zip_bytes)


def _damaged() -> bytes:
    content = os.urandom(2000)
    zip_bytes = bytearray(_archive(("digits.py", content)))
    zip_bytes[500] ^= 0xFF
    return bytes(zip_bytes)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: b"", "no zip file"),
        (lambda: b"PK\x03\x04 nonsense", "no zip file"),
        (lambda: _archive(("/etc/passwd", b"")), "stay inside the folder"),
        (lambda: _archive(("../up.py", b"")), "stay inside the folder"),
        (lambda: _archive(("jobs/../../up.py", b"")), "stay inside the folder"),
        (lambda: _archive(("..\\up.py", b"")), "no backslash"),
        (lambda: _archive(("bad\x1bname.py", b"")), "printable characters"),
        (lambda: _archive(("x" * 300, b"")), "at most 255 bytes"),
        (lambda: _archive((_link(), b"/etc")), "links and devices do not travel"),
        (lambda: _archive(("a.py", b""), ("a.py", b"")), "twice in the zip"),
        (lambda: _archive(("a.py", b""), ("./a.py", b"")), "twice in the zip"),
        (lambda: _archive(("a", b""), ("a/b.py", b"")), "both a file and a folder"),
        (lambda: _archive(("../../up/", b"")), "stay inside the folder"),
        (lambda: _archive(("bad\x1bname/", b"")), "printable characters"),
        (lambda: _archive(("x/" * 600, b"")), "at most 1024 bytes"),
        (lambda: _archive(("a.py", b""), ("a.py/", b"")), "both a file and a folder"),
        (lambda: _archive(("a.py/", b""), ("a.py", b"")), "both a file and a folder"),
        (lambda: _archive(("a", b""), ("a/b/", b"")), "both a file and a folder"),
        (lambda: _flagged(0x01), "not encrypted"),
        (lambda: _flagged(0x20), "no patches"),
        (lambda: _flagged(0x40), "not encrypted"),
        (_odd_compression, "stored or deflated"),
        (_damaged, "damaged"),
    ],
)
def test_a_zip_that_could_do_harm_is_refused_and_not_kept(tmp_path: Path, make: object, rule: str) -> None:
    store = CodeStore(tmp_path / "code")
    assert callable(make)
    with pytest.raises(CodeBundleError, match=rule):
        store.put(make())
    assert list((tmp_path / "code").iterdir()) == []


def test_folders_may_be_named_in_a_zip_and_are_no_files(tmp_path: Path) -> None:
    zip_bytes = _archive(("jobs/", b""), ("jobs/other.py", b""), ("empty/", b""))
    assert CodeStore(tmp_path / "code").names(zip_bytes) == ("jobs/other.py",)


def test_a_damaged_zip_is_refused_or_still_good(tmp_path: Path) -> None:
    store, whole = CodeStore(tmp_path / "code"), zip_folder(_folder(tmp_path / "digits"))
    random, refused = Random(7), 0
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(random.choice((1, 1, 4))):
            damaged[random.randrange(len(damaged))] ^= random.randrange(1, 256)
        with contextlib.suppress(CodeBundleError, TooLargeError):
            store.put(bytes(damaged[: random.choice((len(whole), random.randrange(len(whole))))]))
            continue
        refused += 1
    assert refused > 300


def test_limits_are_named_with_what_was_found(tmp_path: Path) -> None:
    store = CodeStore(tmp_path / "code", limits=CodeLimits(max_bytes=400, max_files=2))
    with pytest.raises(TooLargeError, match="has 401 bytes zipped, the limit is 400 bytes"):
        store.put(bytes(401))
    with pytest.raises(TooLargeError, match="has 3 files and folders, the limit is 2"):
        store.put(_archive(("a", b""), ("b", b""), ("c/", b"")))
    with pytest.raises(TooLargeError, match="has 100000 bytes unpacked, the limit is 4000"):
        store.put(_archive(("zeros", bytes(100_000))))


@pytest.mark.parametrize(
    ("task", "installed_known"),
    [
        ("digits:build", True),
        ("jobs.other:build", True),
        ("package:build", True),
        ("json:loads", True),
        ("__main__:build", True),
        ("some_package_on_the_workers.tasks:build", False),
    ],
)
def test_a_module_that_is_there_or_may_be_is_taken(task: str, installed_known: bool) -> None:
    names = ("digits.py", "jobs/other.py", "package/__init__.py")
    require_task_module(names, CodeSpec(task=task), installed_known=installed_known)


@pytest.mark.parametrize(
    ("names", "task", "installed_known", "hint"),
    [
        (
            ("digits.py",),
            "digts:build",
            True,
            "there is no digts.py or digts/__init__.py.*did you mean 'digits'",
        ),
        (("jobs/digits.py",), "jobs.digts:build", False, "no jobs/digts.py.*did you mean 'jobs.digits'"),
        (("digits.py",), "digits.inner:build", False, "no digits/inner.py.*did you mean 'digits'"),
        (("a.py", "b/__init__.py"), "zzzzz:build", True, "found there: a, b"),
        (("readme.md",), "digits:build", True, "no Python file at all; check code.working_dir"),
    ],
)
def test_a_module_that_is_nowhere_is_refused_with_a_hint(
    names: tuple[str, ...], task: str, installed_known: bool, hint: str
) -> None:
    with pytest.raises(CodeBundleError, match=hint):
        require_task_module(names, CodeSpec(task=task), installed_known=installed_known)
