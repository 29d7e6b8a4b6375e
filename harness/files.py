"""Files that are whole or not there: written beside their place, synced, renamed into it, and the folder synced too.

After a kill or a power cut a reader finds the old file or the whole new one. What a failed write began is removed; what a
killed one began has a hidden name that ends in `.part`, which nobody reads and `sweep` removes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends.

    Raises:
        InputError: as `writable`; `path` is then as it was.
    """
    scratch = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    with writable(path):
        try:
            yield scratch
            sync(scratch)
            scratch.replace(path)
            sync(path.parent)
        finally:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `path` when the block ends. One process at a time: see locks.py.

    Raises:
        InputError: as `writable`; `path` is then as it was.
    """
    scratch = path.with_name(f".{path.name}.part")
    with writable(path):
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.mkdir(parents=True)
            yield scratch
            sync_all(scratch)
            shutil.rmtree(path, ignore_errors=True)
            scratch.replace(path)
            sync(path.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Around what writes `path`, also by libraries that have errors of their own.

    Raises:
        InputError: the disk is full, or nothing may be written there.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise_unwritable(path, error)
        raise


def raise_unwritable(path: Path, error: BaseException) -> None:
    """Say why nothing can be written, where that is what the error means.

    Raises:
        InputError: the disk is full, or nothing may be written there.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (named := re.search(r"\(os error (\d+)\)", str(error))):  # safetensors
        number = int(named[1])
    if number in FULL or (number is None and "inline_container.cc" in str(error)):
        reason = os.strerror(number or errno.ENOSPC)
        raise InputError(
            f"Cannot write to {path} ({reason}). Nothing of it was kept, finished steps are: free some space "
            "(`stance doctor` says where the cache is), then give the same command again."
        ) from error
    if number in CLOSED:
        assert number is not None
        raise InputError(
            f"Cannot write to {path} ({os.strerror(number)}); give another --out, or change the folder's permissions."
        ) from error


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # file systems that do not sync folders
            raise
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """`sync` for everything in a folder, and the folder."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder. Only under its lock: a living writer's file has such a name too."""
    for path in folder.glob(".*.part*"):
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Text as UTF-8.

    Raises:
        InputError: as `writable`.
    """
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, value: Any) -> None:
    """A value as JSON; what JSON has no word for, such as a path, as text.

    Raises:
        InputError: as `writable`.
    """
    write_text(path, json.dumps(value, indent=1, default=str))


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """A frame without its index.

    Raises:
        InputError: as `writable`.
    """
    with replacing(path) as scratch:
        frame.to_parquet(scratch, index=False)


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str] | None = None) -> None:
    """Tensors and texts about them as safetensors; the same ones are the same bytes, which the library's own order is not.

    Raises:
        InputError: as `writable`.
    """
    from safetensors.torch import save

    whole = save(tensors, about)
    size = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:size])
    if about:
        header["__metadata__"] = dict(sorted(about.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as scratch, scratch.open("wb") as file:
        file.writelines((len(text).to_bytes(8, "little"), text, memoryview(whole)[size:]))


def check_schema(path: Path, found: object, known: int, again: str, oldest: int | None = None) -> None:
    """Whether this release reads a file. `again`: what makes it anew; `oldest`: the first schema that is read still.

    Raises:
        InputError: an older or a newer release wrote the file.
    """
    number = found if isinstance(found, int) and not isinstance(found, bool) else 0
    if number > known:
        raise InputError(
            f"{path} has schema {number}, of a newer release; this one reads {known}. Upgrade stance-harness, or {again}."
        )
    if number < (oldest or known):
        raise InputError(f"{path} has schema {found}, of an older release; this one reads {known}: {again}.")


def check_format(path: Path, found: str, known: str) -> None:
    """`check_schema` for a format that ends in its number, such as stance-neurons-1; another format is left to the reader.

    Raises:
        InputError: an older or a newer release wrote the file.
    """
    (name, _, number), (wanted, _, mine) = found.rpartition("-"), known.rpartition("-")
    if name == wanted and number.isdecimal():
        check_schema(path, int(number), int(mine), "find the neurons again")
