"""What befalls a process: SIGKILL at a moment, before a file operation or inside a write; a power cut; Ctrl-C.

A power cut is a kill after which every file has lost what was not synced to the disk. SQLite's files are left as they are: it
syncs by itself, which is not seen here.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

KINDS = {"moment": 35, "write": 25, "inside": 15, "power": 20, "interrupt": 5}  # of a hundred
TIMED = ("moment", "interrupt")
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
SYNCED = "synced"


@dataclass(frozen=True)
class Fault:
    """`at`: a share of the time that a whole making takes, or of its file operations (`inside`: of its syncs)."""

    kind: str
    at: float

    @classmethod
    def drawn(cls, chance: random.Random) -> Fault:
        return cls(chance.choices(list(KINDS), list(KINDS.values()))[0], chance.random())


class Operations:
    """Counts what a process does to files below a folder, and may end it at one of them."""

    def __init__(self, place: Path, fault: Fault | None = None, changes: int = 0, syncs: int = 0) -> None:
        self.changes = self.syncs = 0
        self._place, self._fault = str(place), fault
        self._change = int(fault.at * changes) + 1 if fault and fault.kind in ("write", "power") else 0
        self._sync = int(fault.at * syncs) + 1 if fault and fault.kind == "inside" else 0
        self._fsync: Callable[[int], None] = os.fsync
        self._log = os.open(place / SYNCED, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def watch(self) -> None:
        """From here to the process' end."""
        os.fsync = self._synced  # type: ignore[assignment]
        sys.addaudithook(self._seen)

    def _seen(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in CHANGES:
            path = args[0]
        else:
            return
        if isinstance(path, (str, os.PathLike)) and str(Path(path).absolute()).startswith(self._place):
            self.changes += 1
            if self.changes == self._change:
                die()

    def _synced(self, handle: int) -> None:
        handle = handle if isinstance(handle, int) else handle.fileno()
        self.syncs += 1
        if self.syncs == self._sync:
            path = Path(f"/proc/self/fd/{handle}").resolve()
            if path.is_file():  # as if the write before had been under way
                os.truncate(path, int(path.stat().st_size * random.Random(self._sync).random()))
            die()
        self._fsync(handle)
        about = os.fstat(handle)
        os.write(self._log, f"{about.st_ino} {about.st_size} {about.st_mtime_ns}\n".encode())


def die() -> NoReturn:
    """As if the system had ended the process."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    raise AssertionError("SIGKILL came back")


def lose_unsynced(place: Path, chance: random.Random) -> int:
    """What a power cut does: files that were not synced as they are now are cut, emptied or gone. Returns how many."""
    synced = {tuple(map(int, line.split())) for line in (place / SYNCED).read_text().splitlines()}
    lost = 0
    for path in sorted(place.rglob("*")):
        about = path.lstat()
        if not path.is_file() or path.name == SYNCED or path.name.startswith("answers.sqlite"):
            continue
        if (about.st_ino, about.st_size, about.st_mtime_ns) in synced:
            continue
        lost += 1
        if chance.random() < 0.3:
            path.unlink()
        else:
            os.truncate(path, int(about.st_size * chance.choice([0, chance.random()])))
    return lost
