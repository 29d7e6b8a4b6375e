"""Which words of an answer changed: pieces that are the same, gone or new."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Literal

Piece = tuple[Literal["same", "gone", "new"], str]
_TOKENS = re.compile(r"\s+|\w+|[^\w\s]")


def changed(before: str, after: str) -> list[Piece]:
    """Pieces in reading order; those not `new` spell `before`, those not `gone` spell `after`."""
    old, new = _TOKENS.findall(before), _TOKENS.findall(after)
    pieces: list[Piece] = []
    for kind, i, j, k, m in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(("same", "".join(old[i:j])))
            continue
        if j > i:
            pieces.append(("gone", "".join(old[i:j])))
        if m > k:
            pieces.append(("new", "".join(new[k:m])))
    return pieces
