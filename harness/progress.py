"""Progress bars with stage, items, rate and time left; plain lines where the output is no terminal; notes."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

_stage: list[str] = []


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Name what runs inside the block; bars carry it in front."""
    _stage.append(name)
    try:
        yield
    finally:
        _stage.pop()


def note(text: str) -> None:
    """One line on standard error about what goes on otherwise than asked."""
    print(f"Note: {text}", file=sys.stderr)


def bar(*args: Any, what: str = "", **kwargs: Any) -> tqdm[Any]:
    """A tqdm bar labelled with the stage; silent where standard error is no terminal.

    It is never `disable`d: vLLM divides by the bar's elapsed time, which a disabled bar does not keep.
    """
    kwargs["desc"] = " ".join([*_stage[-1:], what])
    kwargs["file"] = sys.stderr if sys.stderr.isatty() else io.StringIO()
    kwargs |= {"disable": False, "dynamic_ncols": True}
    return tqdm(*args, **kwargs)
