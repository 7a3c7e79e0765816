"""The user's code on its way to the cluster: zipped by the client, checked and kept by the service."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import io
import os
import stat
import tempfile
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from curvewatch_service.errors import CodeBundleError, TooLargeError
from curvewatch_workers.contract import CodeSpec

LEFT_OUT = frozenset(
    {
        ".git",
        ".hg",
        ".svn",
        ".venv",
        "__pycache__",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".ipynb_checkpoints",
    }
)
"""Names that never travel: history, environments and caches."""
UNPACKED_FACTOR = 10
"""A folder may have this many times the bytes of its zip: code packs 3 to 5 times, a zip bomb 1000 times."""
_MAX_NAME_BYTES = 1024
_UNREADABLE_FLAGS = 0x1 | 0x20 | 0x40
"""Encrypted, a patch of another file, strongly encrypted."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_READABLE = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


@dataclass(frozen=True, kw_only=True)
class CodeLimits:
    """How much code a run may bring."""

    max_bytes: int = 100 * 1024 * 1024
    """Most bytes of the zip."""
    max_files: int = 10_000
    """Most files in it."""

    @property
    def max_unpacked_bytes(self) -> int:
        """Most bytes of all files together."""
        return UNPACKED_FACTOR * self.max_bytes


def zip_folder(folder: Path, *, limits: CodeLimits | None = None) -> bytes:
    """Zip a folder of code; the same content gives the same bytes, whatever its times and owners.

    Links to files travel as the files. History, environments and caches (`LEFT_OUT`, `*.pyc`) stay.

    Raises:
        CodeBundleError: The folder cannot be read, or holds a link to a folder or something that is no file.
        TooLargeError: It has more files or bytes than a service takes; names the largest.
    """
    limits = limits or CodeLimits()
    files = sorted(files_that_travel(folder), key=lambda file: file.relative_to(folder).as_posix())
    if len(files) > limits.max_files:
        raise TooLargeError(_too_many(len(files), limits))
    sizes = {file: _size(file) for file in files}
    if sum(sizes.values()) > limits.max_unpacked_bytes:
        largest = max(files, key=lambda file: sizes[file])
        raise TooLargeError(
            f"{_too_large(sum(sizes.values()), limits.max_unpacked_bytes, 'unpacked')}; "
            f"the largest file is {largest.relative_to(folder)} with {sizes[largest]} bytes"
        )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in files:
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), date_time=_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (stat.S_IFREG | (0o755 if os.access(file, os.X_OK) else 0o644)) << 16
            archive.writestr(entry, _content(file))
    return packed.getvalue()


def files_that_travel(folder: Path) -> Iterator[Path]:
    """Yield each file of a folder that `zip_folder` sends.

    Raises:
        CodeBundleError: The folder cannot be read, or holds a link to a folder or something that is no file.
    """
    with _reading(folder):
        entries = sorted(folder.iterdir())
    for entry in entries:
        if entry.name in LEFT_OUT or entry.suffix == ".pyc":
            continue
        _check_name(entry)
        if entry.is_symlink() and not entry.is_file():
            raise CodeBundleError(
                f"{entry} is a link to a folder or to nothing, and links do not travel; put the files "
                "there, or keep data outside the folder and give its path in params"
            )
        if entry.is_dir():
            yield from files_that_travel(entry)
        elif entry.is_file():
            yield entry
        else:
            raise CodeBundleError(f"{entry} is neither a file nor a folder; remove it from the code folder")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CodeBundleError(
            f"{path} cannot be read ({error.strerror or error}), and all files of the code folder travel; "
            "make it readable or move it out of the folder"
        ) from error


def _size(file: Path) -> int:
    with _reading(file):
        return file.stat().st_size


def _content(file: Path) -> bytes:
    with _reading(file):
        return file.read_bytes()


def _check_name(entry: Path) -> None:
    try:
        entry.name.encode()
    except UnicodeEncodeError as error:
        raise CodeBundleError(
            f"the name of {os.fsencode(entry)!r} is not UTF-8, and names in the code folder are; rename it or "
            "move it out of the folder"
        ) from error


class CodeStore:
    """Zipped code folders by the SHA-256 of their bytes: `<root>/<sha256>.zip`."""

    def __init__(self, root: Path, *, limits: CodeLimits | None = None) -> None:
        self._root = root
        self._limits = limits or CodeLimits()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def names(self, zip_bytes: bytes) -> tuple[str, ...]:
        """Check a zip and return the names of its files.

        Raises:
            CodeBundleError: It is no zip, or holds what could leave its folder or cannot be unpacked.
            TooLargeError: It has more files or bytes than allowed.
        """
        limits = self._limits
        if len(zip_bytes) > limits.max_bytes:
            raise TooLargeError(_too_large(len(zip_bytes), limits.max_bytes, "zipped"))
        with _opened(zip_bytes) as archive:
            entries = archive.infolist()
        if len(entries) > limits.max_files:
            raise TooLargeError(_too_many(len(entries), limits, what="files and folders"))
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > limits.max_unpacked_bytes:
            raise TooLargeError(_too_large(unpacked, limits.max_unpacked_bytes, "unpacked"))
        for entry in entries:
            _check_entry(entry)
        names = tuple(entry.filename for entry in entries if not entry.is_dir())
        _check_names(names, folders=[entry.filename for entry in entries if entry.is_dir()])
        return names

    def put(self, zip_bytes: bytes) -> str:
        """Check and keep a zip; returns its SHA-256. What is there already stays.

        Raises:
            CodeBundleError: It is no zip, or holds what could leave its folder or cannot be unpacked.
            TooLargeError: It has more files or bytes than allowed.
        """
        self.names(zip_bytes)
        sha256 = hashlib.sha256(zip_bytes).hexdigest()
        path = self._root / f"{sha256}.zip"
        if path.exists():
            return sha256
        _check_content(zip_bytes)
        # Under another name first: who finds the file finds it whole.
        with tempfile.NamedTemporaryFile(dir=self._root, prefix=".incoming-", delete=False) as file:
            file.write(zip_bytes)
        Path(file.name).replace(path)
        return sha256


def _check_content(zip_bytes: bytes) -> None:
    with _opened(zip_bytes) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise CodeBundleError(f"the zip of the code is damaged ({damaged!r}); send it again")


@contextlib.contextmanager
def _opened(zip_bytes: bytes) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(io.BytesIO(zip_bytes)) as archive:
            yield archive
    # Of damaged bytes zipfile raises whatever its parts do: BadZipFile, zlib.error, struct.error,
    # IndexError, NotImplementedError and more; the bytes are all that is read here.
    except Exception as error:
        raise CodeBundleError(
            f"the code is no zip file that can be read, or a damaged one ({error}); send it again"
        ) from error


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    path, mode = PurePosixPath(name), entry.external_attr >> 16
    rule = None
    kind = stat.S_IFDIR if entry.is_dir() else stat.S_IFREG
    if not name.isprintable() or "\\" in name:
        rule = "names hold printable characters and no backslash"
    elif path.is_absolute() or ".." in path.parts or not path.parts:
        rule = "names are relative and stay inside the folder"
    elif any(len(part.encode()) > 255 for part in path.parts):
        rule = "each part of a name has at most 255 bytes"
    elif len(name.encode()) > _MAX_NAME_BYTES:
        rule = f"names have at most {_MAX_NAME_BYTES} bytes"
    elif stat.S_IFMT(mode) not in (0, kind):
        rule = "links and devices do not travel"
    elif entry.flag_bits & _UNREADABLE_FLAGS:
        rule = "files are not encrypted, and no patches"
    elif entry.compress_type not in _READABLE:
        rule = "files are stored or deflated"
    if rule is not None:
        raise CodeBundleError(f"the code folder cannot be taken because of {name!r}: {rule}")


def _check_names(names: Collection[str], *, folders: Collection[str]) -> None:
    files: set[PurePosixPath] = set()
    for path in map(PurePosixPath, names):
        if path in files:
            raise CodeBundleError(f"{str(path)!r} is twice in the zip of the code; leave one")
        files.add(path)
    named = {PurePosixPath(folder) for folder in folders}
    for path in files | named:
        above = [path, *path.parents] if path in named else path.parents
        if (clash := next((folder for folder in above if folder in files), None)) is not None:
            raise CodeBundleError(f"{str(clash)!r} is both a file and a folder in the zip; rename one")


def _too_large(size: int, limit: int, how: str) -> str:
    return (
        f"the code folder has {size} bytes {how}, the limit is {limit} bytes; keep data and checkpoints "
        "outside of it and give their paths in params"
    )


def _too_many(count: int, limits: CodeLimits, *, what: str = "files") -> str:
    return (
        f"the code folder has {count} {what}, the limit is {limits.max_files}; keep data outside of it and "
        "give its path in params"
    )


def require_task_module(names: Collection[str], code: CodeSpec, *, installed_known: bool) -> None:
    """Check that the module of a task is there, as far as that can be known without running the code.

    A module is taken if it is in the folder. If not even its top-level package is, it may be installed
    where the workers run: then it is refused only if their environment is this one and does not have it.

    Args:
        names: Files of the code folder.
        code: The job's code; its task or loop names the module.
        installed_known: Whether the workers run in the environment of this process.

    Raises:
        CodeBundleError: There is no such module; names the closest.
    """
    module = code.entry.partition(":")[0]
    base, top = module.replace(".", "/"), module.partition(".")[0]
    if f"{base}.py" in names or f"{base}/__init__.py" in names:
        return
    ours = any(name == f"{top}.py" or name.startswith(f"{top}/") for name in names)
    if not ours and not (installed_known and not _installed(top)):
        return
    modules = sorted({_module_of(name) for name in names if name.endswith(".py")} - {""})
    close = difflib.get_close_matches(module, modules, n=1, cutoff=0.6)
    if close:
        hint = f"did you mean {close[0]!r}?"
    elif modules:
        hint = f"found there: {', '.join(modules[:20])}"
    else:
        hint = "it holds no Python file at all; check code.working_dir"
    raise CodeBundleError(
        f"{code.entry_field}: there is no {base}.py or {base}/__init__.py in the code folder; {hint}"
    )


def _installed(top: str) -> bool:
    try:
        return importlib.util.find_spec(top) is not None
    except ValueError:  # a module without a spec, such as __main__
        return True


def _module_of(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
