"""Tables as plain objects, and the one function that writes a number.

A Table is built once and drawn as HTML (the template), Markdown or a rich table, so the three cannot disagree.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Kind = Literal["signed", "plain", "percent", "points"]
CELL_WIDTH = 21  # an interval in brackets, with the column's border and padding
NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Cell:
    """A formatted value; `tint` in [-1, 1] colours the cell."""

    text: str
    interval: str = ""
    tint: float | None = None
    strong: bool = False

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".strip()


@dataclass(frozen=True)
class Row:
    """One line; `role` says which colour its label carries, `note` stands small under it."""

    label: str
    cells: tuple[Cell, ...]
    role: str = ""
    note: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A captioned table; `corner` heads the row labels."""

    caption: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def number(value: float | None, kind: Kind = "signed") -> str:
    """The one way a result is written: three decimals, or percent with one; missing is an en dash."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return f"{MINUS if value < 0 else ''}\N{INFINITY}"
    text = f"{abs(value) * 100:.1f}" if kind in ("percent", "points") else f"{abs(value):.3f}"
    zero = not text.strip("0.")
    sign = "" if zero else MINUS if value < 0 else "+" if kind in ("signed", "points") else ""
    return sign + text + {"percent": "%", "points": " pp"}.get(kind, "")


def interval(low: float | None, high: float | None, kind: Kind = "signed") -> str:
    """`[low, high]` without the unit the value already carries, or nothing where there is no interval."""
    ends = [number(end, kind).removesuffix("%").removesuffix(" pp") for end in (low, high)]
    return "" if NONE in ends else f"[{ends[0]}, {ends[1]}]"


def plain_text(text: object) -> str:
    """One line of text that Markdown shows as it stands: labels and titles are not ours."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*|\[\]])", r"\\\1", line).replace("<", "&lt;").replace(">", "&gt;")


def markdown(table: Table) -> str:
    """A Markdown table, padded so that it reads as plain text too."""
    lines = [[table.corner, *table.columns]]
    for row in table.rows:
        label = f"{row.label} ({row.note})" if row.note else row.label
        lines.append([label, *(str(cell) for cell in row.cells)])
    grid = [[plain_text(text) if i == 0 or j == 0 else text for j, text in enumerate(x)] for i, x in enumerate(lines)]
    widths = [max(3, *(len(line[column]) for line in grid)) for column in range(len(grid[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def draw(line: list[str]) -> str:
        right = [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        return "| " + " | ".join([line[0].ljust(widths[0]), *right]) + " |"

    return "\n".join(draw(line) for line in [grid[0], rule, *grid[1:]])


def rich(table: Table, width: int = 200) -> RichTable:
    """The same table for a terminal of `width` characters: whole columns, as many as fit; the rest is in the report.

    Labels are Text, so markup in them is not read. Roles and notes are left to the report, where there is room.
    """
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(title=Text(table.caption), title_justify="left", caption_justify="left")
    longest = max((len(row.label) for row in table.rows), default=0)
    room = max(1, (width - longest - 4) // CELL_WIDTH)
    drawn.add_column(Text(table.corner), no_wrap=True)
    for column in table.columns[:room]:
        drawn.add_column(Text(column), justify="right", no_wrap=True, min_width=CELL_WIDTH - 3)
    for row in table.rows:
        cells = (Text(f"{cell.text}\n{cell.interval}".rstrip()) for cell in row.cells[:room])
        drawn.add_row(Text(row.label, style="bold"), *cells)
    if room < len(table.columns):
        drawn.caption = Text(f"{len(table.columns) - room} more columns in the report")
    return drawn
