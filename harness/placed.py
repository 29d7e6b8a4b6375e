"""Where that which a study reads lies on this machine: in its place, or in a copy of it.

A node of a cluster that does not see the disk on which a study names a model or a folder is sent copies (harness/cluster.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Copy(NamedTuple):
    """Where a copy lies, and how the original is named in manifests."""

    path: str
    title: str


_copies: dict[str, Copy] = {}


def place(copies: Mapping[str, Copy]) -> None:
    """From now on, in this process, what is named by a key lies where its value says."""
    _copies.clear()
    _copies.update(copies)


def here(name: str | Path) -> str:
    """The path of a model, a file or a folder (or of what lies in such a folder) on this machine; other names as they are."""
    for named, copy in _copies.items():
        if str(name) == named:
            return copy.path
        if Path(named) in Path(name).parents:
            return str(Path(copy.path) / Path(name).relative_to(named))
    return str(name)


def title(name: str) -> str:
    """A model as manifests name it: one in a folder by the folder's own name, since the path is one machine's."""
    if name in _copies:
        return _copies[name].title
    return Path(name).name if Path(name).exists() else name
