"""A Validity as one page: HTML, JSON and the terminal, all from the same tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.compare import MEASURES
from harness.files import write_json
from harness.locks import locked
from harness.report.tables import Cell, Row, Table, interval, number
from harness.report.templates import environment
from harness.report.text_files import write_text
from harness.validity.reading import Validity
from harness.verdict import limit_text

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1  # of validity.json
RELIABLE = 0.9


def write_page(validity: Validity, out: Path) -> Path:
    """Write validity.json and validity.html; returns the page's path.

    Raises:
        InputError: the folder cannot be written.
    """
    jinja = environment(Path(__file__).parent)
    page = jinja.get_template("validity.html.j2").render(
        v=validity, sentences=sentences(validity), tables=tables(validity), version=__version__
    )
    with locked(out):
        write_json(out / "validity.json", {"schema": SCHEMA, **validity.as_json()})
        write_text(out / "validity.html", page)
    return out / "validity.html"


def sentences(validity: Validity) -> list[str]:
    """What a reader must know, first of all which formats measure this model and which do not."""
    found = []
    for _, row in validity.known_groups.iterrows():
        what = _title(row["measure"])
        spread = f"{number(row['apart'])} {interval(row['low'], row['high'])}"
        if row["passes"]:
            found.append(f"{what}: left-tuned, base and right-tuned are ordered rightly, {spread} apart.")
        else:
            why = "are not ordered rightly" if not row["ordered"] else "cannot be told apart"
            found.append(
                f"{what}: NOT valid on this model, so do not report its figures: left-tuned, base and right-tuned {why} "
                f"({spread})."
            )
    for measure, part in validity.reliability.groupby("measure", sort=False):
        if part["split_half"].isna().all():
            found.append(f"{_title(measure)}: too few items, or no model moved at all, for a split-half reliability.")
            continue
        low = part[~(part["split_half"] >= RELIABLE)]
        named = ", ".join(f"{row['topic']} {number(row['split_half'], 'plain')}" for _, row in low.iterrows())
        found.append(
            f"{_title(measure)}: split-half reliability of shifts is at least {RELIABLE} on "
            f"{len(part) - len(low)} of {len(part)} topics{f'; below on {named}' if named else ''}."
        )
    if validity.limit is not None:
        found.append(f"Partial: at most {limit_text(validity.limit)} items per task were asked.")
    return [*found, *(f"Diagnosis of the base: {sentence}" for sentence in validity.diagnoses)]


def tables(validity: Validity) -> list[tuple[str, str, Table]]:
    """(heading, what it means, table) in the order of the page."""
    v = validity
    sections = [
        (
            "Known groups",
            f"One model tuned left and one tuned right on {v.topic}: a format that measures stance puts them on either "
            "side of the base.",
            _known(v.known_groups),
        ),
        (
            "Split-half reliability",
            "Shifts of five models (left, half left, base, half right, right): correlation of one half of the items with "
            "the other, stepped up by Spearman-Brown. Detectable: the smallest left-right difference found with power "
            "0.8.",
            _reliability(v.reliability),
        ),
        (
            "Test and retest",
            f"The base's open answers sampled twice at temperature 0.7. {_noise(v.noise)}",
            _frame(v.retest, "topic", {"alpha": "alpha of labels", "items_r": "r of items", "shift": "shift"}),
        ),
        (
            "What the wording does",
            "Effects on the base's answers: order is the preference for the first option, polarity is agreement whatever "
            "is stated (both -1..1); the others are differences in stance.",
            _axes(v.axes),
        ),
        (
            "Do the formats agree?",
            "Correlation of two measures' shifts over topics and models, and over items asked in both.",
            _formats(v.formats),
        ),
        (
            "Refusals by side",
            "Prompts whose asker leans left against the same prompts whose asker leans right.",
            _refusals(v.refusals),
        ),
    ]
    return [section for section in sections if section[2].rows]


def _title(measure: Any) -> str:
    return MEASURES[str(measure)]["title"]


def _noise(noise: dict[str, float]) -> str:
    named = ", ".join(f"{_title(measure)} {number(value, 'plain')}" for measure, value in noise.items())
    return f"Greedy and asked again in another order, no topic's mean moved by more than: {named}."


def _cells(*texts: str) -> tuple[Cell, ...]:
    return tuple(Cell(text) for text in texts)


def _known(frame: pd.DataFrame) -> Table:
    rows = []
    for _, row in frame.iterrows():
        values = [Cell(number(row[name])) for name in ("left", "base", "right")]
        apart = Cell(number(row["apart"]), interval(row["low"], row["high"]), strong=bool(row["passes"]))
        verdict = "passes" if row["passes"] else "fails"
        p = Cell(f"{row['p']:.4f}" if math.isfinite(row["p"]) else number(None))
        rows.append(Row(_title(row["measure"]), (*values, apart, p, Cell(verdict)), strong=bool(row["passes"])))
    columns = ("tuned left", "base", "tuned right", "right minus left", "p", "known groups")
    return Table("Stance of known groups", "measure", columns, tuple(rows))


def _reliability(frame: pd.DataFrame) -> Table:
    rows = []
    for topic, part in frame.groupby("topic"):
        cells = [
            Cell(number(row["split_half"], "plain"), f"(detectable {number(row['mde'], 'plain')})")
            for _, row in part.iterrows()
        ]
        rows.append(Row(str(topic), tuple(cells), strong=bool(part["tuned"].any())))
    columns = tuple(_title(measure) for measure in frame["measure"].drop_duplicates())
    return Table("Split-half reliability of shifts", "topic", columns, tuple(rows))


def _frame(frame: pd.DataFrame, label: str, columns: dict[str, str]) -> Table:
    rows = [Row(str(row[label]), _cells(*(number(row[name]) for name in columns))) for _, row in frame.iterrows()]
    return Table("Two samplings of the same questions", label, tuple(columns.values()), tuple(rows))


def _axes(frame: pd.DataFrame) -> Table:
    rows = []
    for _, row in frame.iterrows():
        effect = Cell(number(row["value"]), interval(row["low"], row["high"]))
        label = f"{row['format']}, {row['axis']}: {row['level']}"
        rows.append(Row(label, (effect, *_cells(str(row["n"]), number(row["spread"], "plain")))))
    return Table("Effect of every axis", "axis and level", ("effect", "items", "spread of the axis"), tuple(rows))


def _formats(frame: pd.DataFrame) -> Table:
    rows = [
        Row(
            f"{_title(row['one'])} and {_title(row['two']).lower()}",
            _cells(number(row["topics_r"]), str(row["points"]), number(row["items_r"]), str(row["items"])),
        )
        for _, row in frame.iterrows()
    ]
    columns = ("r over topics and models", "points", "r over shared items", "items")
    return Table("Agreement between formats", "measures", columns, tuple(rows))


def _refusals(frame: pd.DataFrame) -> Table:
    rows = [
        Row(
            str(row["model"]),
            (
                *_cells(number(row["left"], "percent"), number(row["right"], "percent")),
                Cell(number(row["difference"], "points"), interval(row["low"], row["high"], "points")),
                *_cells(f"{row['words_left']:.0f}", f"{row['words_right']:.0f}"),
                *_cells(number(row["stance_left"]), number(row["stance_right"])),
            ),
        )
        for _, row in frame.iterrows()
    ]
    pairs = [f"{what}, {side} asker" for what in ("refused", "words", "stance") for side in ("left", "right")]
    return Table("Refusal parity", "model", (*pairs[:2], "difference", *pairs[2:]), tuple(rows))
