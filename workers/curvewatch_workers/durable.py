"""Files that outlive the power: what was synced is on the disk, whole."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

_CHUNK = 1 << 20


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Wait until a folder without folders in it is on the disk with its files."""
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def crc32(path: Path) -> int:
    """Return the CRC-32 of a file's bytes."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
