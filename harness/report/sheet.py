"""A sheet: what an analysis found, on one self-contained page. Sentences first, then sections of a table or a figure.

The same tables become HTML, Markdown, the terminal's and one CSV each, in which numbers keep their full precision.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.files import sweep, writable, write_json
from harness.locks import locked
from harness.process import command
from harness.report import svg, tables
from harness.report.tables import Cell, Kind, Row, Table
from harness.report.templates import environment
from harness.report.text_files import write_frame, write_text
from harness.verdict import limit_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


SCHEMA = 1  # of findings.json


@dataclass(frozen=True)
class Picture:
    """A figure. `finding` is its title, `words` its text alternative; `draw` takes a width in pixels (see figures.py)."""

    finding: str
    words: str
    draw: Callable[[int], Figure]


@dataclass(frozen=True)
class Section:
    """One heading with what it means, and a table, a picture or both.

    Attributes:
        name: file name of the CSV, without ending.
        table: the first column labels the rows.
        intervals: column -> its (low, high) columns, which are then shown beside it.
        kinds: column -> how its numbers are written (default `plain`).
    """

    name: str
    heading: str
    text: str = ""
    table: pd.DataFrame | None = None
    picture: Picture | None = None
    intervals: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    kinds: Mapping[str, Kind] = field(default_factory=dict)

    def shown(self) -> Table | None:
        """The table as people see it."""
        if self.table is None:
            return None
        frame, ends = self.table, {end for pair in self.intervals.values() for end in pair}
        label, *columns = (str(c) for c in frame.columns if c not in ends)
        rows = [
            Row(str(row[label]), tuple(self._cell(row, column) for column in columns))
            for row in frame.to_dict("records")
        ]
        return Table(self.heading, label, tuple(columns), tuple(rows))

    def _cell(self, row: Mapping[Any, Any], column: str) -> Cell:
        value, kind = row[column], self.kinds.get(column, "plain")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return Cell(tables.NONE if value is None else str(value))
        if isinstance(value, int) and column not in self.kinds:
            return Cell(f"{value:,}")
        around = ""
        if column in self.intervals:
            low, high = (float(row[end]) for end in self.intervals[column])
            around = "" if math.isnan(low) or math.isnan(high) else tables.interval(low, high, kind)
        return Cell(tables.number(float(value), kind), around)


@dataclass(frozen=True)
class Sheet:
    """A page. `about`: parameters and provenance, printed at its end and kept in findings.json, with the command that is run.

    `limit`: items per task at most, where not all of them were asked; the page says so.
    """

    title: str
    kicker: str
    sentences: tuple[str, ...]
    sections: tuple[Section, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    limit: int | dict[str, int] | None = None

    @property
    def said(self) -> tuple[str, ...]:
        """The sentences, and that only a part was asked where that is so."""
        if self.limit is None:
            return self.sentences
        return (*self.sentences, f"Partial: at most {limit_text(self.limit)} items per task were asked.")


def write_sheet(sheet: Sheet, out: Path) -> Path:
    """Write a CSV per table, findings.json, report.md and index.html; returns the page's path.

    Raises:
        InputError: the folder cannot be written.
    """
    if typed := command():
        sheet = replace(sheet, about={**sheet.about, "made by": shlex.join(typed)})
    with locked(out), writable(out):
        sweep(out)
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "title": sheet.title,
            "sentences": list(sheet.said),
            "about": dict(sheet.about),
        }
        found["tables"] = {s.name: s.table.to_dict("records") for s in sheet.sections if s.table is not None}
        for section in sheet.sections:
            if section.table is not None:
                write_frame(section.table, out / f"{section.name}.csv")
        write_json(out / "findings.json", found)
        write_text(out / "report.md", _markdown(sheet))
        write_text(out / "index.html", _html(sheet))
    return out / "index.html"


def _html(sheet: Sheet) -> str:
    jinja = environment()
    drawn = [
        (section, section.shown(), svg.both(section.name, section.picture.draw) if section.picture else None)
        for section in sheet.sections
    ]
    return jinja.get_template("sheet.html.j2").render(sheet=sheet, sections=drawn, version=__version__)


def _markdown(sheet: Sheet) -> str:
    parts = [
        f"# {tables.plain_text(sheet.title)}",
        *(f"- {tables.plain_text(sentence)}" for sentence in sheet.said),
    ]
    for section in sheet.sections:
        parts += [f"\n## {tables.plain_text(section.heading)}", tables.plain_text(section.text)]
        shown = section.shown()
        parts += [tables.markdown(shown)] if shown else []
    return "\n".join(part for part in parts if part) + "\n"
