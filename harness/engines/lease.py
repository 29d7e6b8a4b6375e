"""One engine for every measurement of a process: the next variant is swapped in instead of started.

Starting vLLM costs many times what swapping weights does. On a GPU the engine holds most of the memory, so Torch-side work
there asks for it back first (`make_room`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from harness import engines
from harness.engines import Serving, Settings
from harness.errors import InputError
from harness.models import device

_live: tuple[str, Settings, Serving] | None = None


@contextmanager
def leased(name: str, folder: str, settings: Settings) -> Iterator[Serving]:
    """An engine that serves the folder's weights without any intervention; it stays for the next lease.

    An error inside the block closes the engine, whatever state it is in.

    Raises:
        InputError: unknown engine, or vLLM is not installed.
    """
    engine = _swapped(name, folder, settings) or _started(name, folder, settings)
    try:
        yield engine
    except BaseException:
        release()
        raise


def release() -> None:
    """Close the engine, if there is one."""
    global _live
    if _live is not None:
        engine, _live = _live[2], None
        with suppress(Exception) if engine.dead else nullcontext():
            engine.close()


def make_room() -> None:
    """Close the engine where Torch needs its memory: on a GPU."""
    if device() == "cuda":
        release()


def _swapped(name: str, folder: str, settings: Settings) -> Serving | None:
    if _live is None or _live[:2] != (name, settings) or _live[2].dead:
        return None
    try:
        _live[2].swap(folder)
    except InputError:  # another architecture
        return None
    return _live[2]


def _started(name: str, folder: str, settings: Settings) -> Serving:
    global _live
    release()
    _live = (name, settings, engines.start(name, folder, settings))
    return _live[2]
