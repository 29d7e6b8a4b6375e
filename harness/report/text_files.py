"""Text and CSV files that others open: no control character reaches a terminal, no text becomes a spreadsheet's formula."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd

from harness import files

FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four: wide forms
CONTROL = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (
        *range(0x20),
        *range(0x7F, 0xA0),
        0x061C,
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
    )
    if chr(code) not in "\t\n\r"
}


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """A frame as CSV: numbers in full precision, texts quoted and guarded, in cells as in headings."""
    safe = frame.rename(columns=guarded)
    safe = safe.astype(object).map(guarded) if len(safe) else safe
    style: dict[str, Any] = {"lineterminator": "\n", "quoting": csv.QUOTE_NONNUMERIC}  # or a lone \\r ends a row
    with files.replacing(path) as scratch:
        safe.to_csv(scratch, index=False, encoding="utf-8", errors="replace", **style)


def guarded(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets a leading apostrophe; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    text = carried(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def carried(text: str) -> str:
    """Text as UTF-8 can carry it: a lone surrogate becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def write_text(path: Path, text: str) -> None:
    """Text as UTF-8 carries it, and a terminal may show it: no lone surrogates, no controls, nothing that turns its
    direction."""
    files.write_text(path, text.translate(CONTROL), errors="replace")
