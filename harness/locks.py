"""One process at a time on a folder. The system gives a dead process' locks back, so none is ever stale."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import InputError
from harness.files import writable
from harness.process import command

NAME = ".lock"


def lock(folder: Path, wait: float = 0) -> FileLock:
    """Take a folder that is there; the same process may take it again. `unlock` gives it back, or the process' end.

    `wait`: seconds that another process is given to let go of it.

    Raises:
        InputError: another process has it (which one is said), or nothing can be written there.
    """
    file = folder / NAME
    taken = FileLock(file, timeout=0, thread_local=False, is_singleton=True)
    with writable(file):
        try:
            taken.acquire(timeout=wait)
        except Timeout:
            raise InputError(
                f"{folder} is being made by another process{_holder(file)}. Wait until it has finished, end it, or give "
                "another --out."
            ) from None
        if taken.lock_counter == 1:
            about = {"process": os.getpid(), "machine": platform.node(), "command": shlex.join(command())}
            file.write_text(json.dumps(about), encoding="utf-8")
    return taken


def unlock(taken: FileLock) -> None:
    """Give a folder back, and leave no file behind: a process that waits for a removed one sees it and asks again."""
    if taken.is_locked and taken.lock_counter == 1:
        with suppress(OSError):
            Path(taken.lock_file).unlink()
    taken.release()


@contextmanager
def locked(folder: Path, wait: float = 0) -> Iterator[None]:
    """`lock` for a block; the folder is made where it is missing, and does not stay where nothing was put into it.

    Raises:
        InputError: as `lock`.
    """
    new = not folder.exists()
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    taken = lock(folder, wait)
    try:
        yield
    finally:
        unlock(taken)
        if new:
            with suppress(OSError):  # it holds something
                folder.rmdir()


@contextmanager
def waiting_for(path: Path) -> Iterator[None]:
    """Wait until no other process makes `path`, and keep them from it: for what is kept in caches and made once.

    Raises:
        InputError: nothing can be written there.
    """
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        taken = FileLock(path.with_name(f".{path.name}{NAME}"), thread_local=False, is_singleton=True)
        taken.acquire()
    try:
        yield
    finally:
        unlock(taken)


def _holder(file: Path) -> str:
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        return f", {about['process']} on {about['machine']} ({about['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
