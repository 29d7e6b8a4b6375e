"""Statement lists: one claim a line, marked with the side whose supporters would agree.

    # my copy of the test
    left: The rich are taxed too little.
    right: Military action that defies international law is sometimes justified.

Statements have no written opposite, so each is also asked denied; agreeing with everything then reads as 0 however many
claims lean either way.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from harness.errors import InputError

_LINE = re.compile(r"(left|right)\s*[:\t]\s*(\S.*)", re.IGNORECASE)


def material(file: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The statements of a text file; lines that start with # are left out.

    Raises:
        InputError: a line without a side, with its number, or no line at all.
    """
    statements = []
    for record in records:
        if record["line"].startswith("#"):
            continue
        found = _LINE.fullmatch(record["line"])
        if not found:
            raise InputError(
                f"{file} line {record['number']} names no side: {record['line'][:60]!r}. Expected `left: claim` or "
                "`right: claim`, the side whose supporters would agree."
            )
        name = f"s{record['number']:04d}"
        statements.append({"id": name, "text": found[2], "agree": found[1].lower(), "sub_issue": "all"})
    if not statements:
        raise InputError(f"{file} holds no statement; expected `left: claim` or `right: claim` a line.")
    return {"statements": statements}
