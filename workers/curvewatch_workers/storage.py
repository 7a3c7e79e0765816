"""Storage of any kind behind pyarrow's file systems: this machine's, S3, Google's, or what fsspec knows."""

from __future__ import annotations

import posixpath
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import pyarrow.fs
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from curvewatch_workers.errors import StorageError

_ARROW_SCHEMES = frozenset({"file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs"})
_CHUNK = 16 << 20


def open_storage(address: str) -> tuple[FileSystem, str]:
    """Return the file system of a path or URI, and the path on it.

    Raises:
        StorageError: No such storage is known here, or the URI is not one of its.
    """
    if "://" not in address:
        return LocalFileSystem(), address
    try:
        if urlsplit(address).scheme in _ARROW_SCHEMES:
            arrow, path = FileSystem.from_uri(address)
            return arrow, path
        filesystem, path = fsspec.core.url_to_fs(address)
    except (ValueError, ImportError, OSError) as error:
        raise StorageError(
            f"checkpoints.path is {address!r}, which cannot be opened: {_first_line(error)}; name an absolute path or "
            "a URI that pyarrow or fsspec understands, and install what its kind of storage needs on the workers"
        ) from error
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path


def make_folder(address: str) -> tuple[FileSystem, str]:
    """Open a storage, and make the folder there unless there is one.

    Raises:
        StorageError: No such storage is known here, or it takes no folder.
    """
    filesystem, path = open_storage(address)
    try:
        filesystem.create_dir(path, recursive=True)
    except OSError as error:
        raise StorageError(
            f"checkpoints.path is {address!r}, where no folder can be made: {_first_line(error)}; "
            "name a place that the workers may write to, and give them its credentials"
        ) from error
    return filesystem, path


def require_shared(address: str) -> None:
    """Check that a storage is not one that each process has for itself.

    Raises:
        StorageError: It is.
    """
    if urlsplit(address).scheme == "memory":
        raise StorageError(
            f"checkpoints.path is {address!r}, which each process has for itself and which ends with it; name a place "
            "that all workers share"
        )


def is_local(filesystem: FileSystem) -> bool:
    """Say whether paths of the file system are this machine's own: a disk, or NFS that is mounted."""
    return isinstance(filesystem, LocalFileSystem)


def address_below(address: str, *names: str) -> str:
    """Return the path or URI of something below another one; a URI's options stay at its end."""
    if "://" not in address:
        return posixpath.join(address, *names)
    place, mark, options = address.partition("?")
    return posixpath.join(place, *names) + mark + options


def upload(folder: Path, filesystem: FileSystem, place: str) -> None:
    """Copy the files of a folder into a folder of the storage, which is made."""
    filesystem.create_dir(place, recursive=True)
    # One at a time: pyarrow's copy_files can deadlock when it uploads to S3 in its threads.
    for path in sorted(folder.iterdir()):
        with path.open("rb") as source, filesystem.open_output_stream(f"{place}/{path.name}") as target:
            shutil.copyfileobj(source, target, _CHUNK)


def download(filesystem: FileSystem, place: str, folder: Path) -> None:
    """Copy the files of a folder of the storage into an existing folder.

    Raises:
        OSError: It is not there, or cannot be read.
    """
    for info in filesystem.get_file_info(FileSelector(place)):
        if info.type is FileType.File:
            with (
                filesystem.open_input_stream(info.path) as source,
                (folder / info.base_name).open("wb") as target,
            ):
                shutil.copyfileobj(source, target, _CHUNK)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
