"""A job whose loop is the user's: its file, and the store that its run is in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from curvewatch_service.store import Store
from store_support import database_url, new_run


def write_loop(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the user's module `my_loop`, to be imported anew."""
    (folder / "my_loop.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    sys.modules.pop("my_loop", None)


@contextmanager
def store_of_run(folder: Path, run_id: str) -> Iterator[Store]:
    """Give a store in which the run's first submission has begun."""
    opened = Store(database_url(folder))
    new_run(opened, run_id)
    assert opened.begin_submission(run_id) is not None
    yield opened
    opened.close()
