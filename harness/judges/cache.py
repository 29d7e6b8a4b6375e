"""Labels an endpoint gave, in one SQLite file. Each is committed when it arrives, so that a kill loses none."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.characters import one_line
from harness.errors import InputError

WAIT = 30.0  # seconds for another process to finish writing


class LabelCache:
    """Key -> label. Several processes may use one file; neither questions nor answers are in it, only keys and labels.

    Raises:
        InputError: the file is no cache, or cannot be read or written; so do all methods.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        with self._usable():
            file.parent.mkdir(parents=True, exist_ok=True)
            # No isolation level: every statement is its own transaction.
            self._base = sqlite3.connect(file, timeout=WAIT, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("CREATE TABLE IF NOT EXISTS labels (key TEXT PRIMARY KEY, label TEXT NOT NULL)")

    def known(self, keys: Iterable[str]) -> dict[str, str]:
        """Those of the keys that have a label."""
        with self._usable():
            rows = [
                self._base.execute("SELECT key, label FROM labels WHERE key = ?", (key,)).fetchone() for key in keys
            ]
        return {row[0]: row[1] for row in rows if row}

    def add(self, key: str, label: str) -> None:
        """Keep a label; it is on disk when this returns."""
        with self._usable():
            self._base.execute("INSERT OR REPLACE INTO labels VALUES (?, ?)", (key, label))

    def close(self) -> None:
        self._base.close()

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # the last: damaged, and its error quotes that
            reason = one_line(str(error))
            raise InputError(
                f"The judges' cache {self.file} cannot be used ({reason}); expected a file that stance wrote and may "
                "write. Remove it, set STANCE_CACHE to another folder, or set STANCE_JUDGE_CACHE=0 to do without."
            ) from None
