"""How far the figures can be believed, as tables: reliability, wording, sides, judges. See `harness.quality`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.report.content import records, runs_of, title_of, topic_name
from harness.report.tables import Cell, Row, Table, interval, number
from harness.verdict import noise_floor

if TYPE_CHECKING:
    from harness.compare import Comparison

MODELS = 3  # fewer give no correlation
EFFECTS = {"order": "preference for the first option", "polarity": "agreement, whatever is stated"}
LABELS = {"off_topic": "off topic", "mass": "probability on the options' letters"}


@dataclass(frozen=True)
class Part:
    """One table of the section with what it means."""

    title: str
    note: str
    table: Table


def parts(comparison: Comparison) -> dict[str, Part]:
    """Name -> table, those for which something was measured."""
    made = {
        "reliability": Part(
            "Do halves of the items agree?",
            "Correlation, over the models, of one half of the items' shifts with the other half's, stepped up to the whole "
            "by Spearman-Brown. Low: another set of items would have told another story. It rises with the "
            "distance between the models, so compare it between topics, not between studies.",
            _reliability(comparison),
        ),
        "axes": Part(
            "What did the wording do?",
            "Order is the preference for the first option and polarity is agreement whatever is stated, both -1 to 1, and "
            "neither can move a stance, because both are crossed within every item. The others are differences in "
            "stance from the axis' first level. An effect larger than a shift says: the words matter more than the tuning.",
            _axes(comparison),
        ),
        "sides": Part(
            "Is one side answered less?",
            "The same questions from an asker who leans left and one who leans right, and claims of either side. A "
            "difference that changes between runs is a change in whom the model answers, which no stance shows.",
            _sides(comparison),
        ),
        "judges": Part(
            "Do the judges agree?",
            "Krippendorff's alpha between the judges of the open answers: 1 is perfect, 0 is chance, and below .67 "
            "conclusions are tentative.",
            _judges(comparison),
        ),
    }
    return {name: part for name, part in made.items() if part.table.rows}


def unmeasured(comparison: Comparison) -> list[str]:
    """What this comparison cannot say about itself, and how to find out."""
    found = []
    if comparison.quality["reliability"]["split_half"].isna().all():
        found.append(f"Reliability: no measure has {MODELS} models that differ and four items per topic.")
    asked = {str(kind) for kind in comparison.rates["format"]}
    if "open" in asked and comparison.quality["judges"].empty:
        found.append("Agreement of judges: one judge read the open answers; give several with --judge a,b.")
    if "open" in asked and not (comparison.quality["sides"]["format"] == "open").any():
        found.append("Refusals by side: no open prompt was asked by askers of both sides.")
    if noise_floor(comparison.shifts, comparison.headline) is None:
        found.append("Noise floor: no run measures the base a second time.")
    found.append("Known groups, retest and dose on this very model: stance validate.")
    return found


def _reliability(comparison: Comparison) -> Table:
    rows = [row for row in records(comparison.quality["reliability"]) if row["split_half"] == row["split_half"]]
    measures = list(dict.fromkeys(str(row["measure"]) for row in rows))
    found = {(row["topic"], row["measure"]): row for row in rows}
    body = []
    for topic in dict.fromkeys(str(row["topic"]) for row in rows):
        cells = []
        for measure in measures:
            row = found.get((topic, measure))
            cells.append(Cell(f"{number(row['split_half'], 'plain')} ({row['items']})" if row else number(None)))
        body.append(Row(topic_name(topic), tuple(cells), strong=topic == comparison.on_topic))
    models = max((int(row["models"]) for row in rows), default=0)
    columns = tuple(title_of(comparison, measure).partition(" (")[0] for measure in measures)
    return Table(f"Split-half reliability of shifts over {models} models (items)", "Topic", columns, tuple(body))


def _axes(comparison: Comparison) -> Table:
    rows = records(comparison.quality["axes"])
    runs = _shown(comparison, rows)
    found = {(row["format"], row["axis"], row["level"], row["run"]): row for row in rows}
    body = []
    for kind, axis, level in dict.fromkeys(key[:3] for key in found):
        cells = []
        for run in runs:
            row = found.get((kind, axis, level, run["label"]))
            cells.append(Cell(number(row["value"]), interval(row["low"], row["high"])) if row else Cell(number(None)))
        items = max(int(row["n"]) for key, row in found.items() if key[:3] == (kind, axis, level))
        said = EFFECTS.get(str(axis)) or str(level).replace("_", " ")
        body.append(Row(f"{topic_name(kind)}, {axis}: {said}", tuple(cells), note=f"n = {items} items"))
    caption = "Effect of every axis along which prompts were varied; 95% intervals over items"
    return Table(caption, "Axis", tuple(run["label"] for run in runs), tuple(body))


def _sides(comparison: Comparison) -> Table:
    rows = records(comparison.quality["sides"])
    body = []
    for run in _shown(comparison, rows):
        for row in (row for row in rows if row["run"] == run["label"]):
            cells = (
                *(Cell(number(row[side], "percent")) for side in ("left", "right")),
                Cell(number(row["difference"], "points"), interval(row["low"], row["high"], "points")),
            )
            said = LABELS.get(str(row["label"]), str(row["label"]))
            body.append(Row(run["label"], cells, run["role"], f"{row['format']}: {said}, n = {int(row['n'])} items"))
    caption = "Answers that are none, and claims answered, by the side the prompt takes; 95% intervals over items"
    return Table(caption, "Run", ("prompts of the left", "of the right", "right minus left"), tuple(body))


def _judges(comparison: Comparison) -> Table:
    body = []
    for row in records(comparison.quality["judges"]):
        cells = [Cell(number(row[name], "plain")) for name in ("alpha_sides", "alpha")]
        body.append(Row(str(row["run"]), (*cells, Cell(f"{int(row['answers']):,}")), note=str(row["judges"])))
    return Table("Agreement between judges", "Run", ("over sides", "over all labels", "answers"), tuple(body))


def _shown(comparison: Comparison, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs that have rows, without the noise floor: it repeats the base."""
    measured = {row["run"] for row in rows}
    return [run for run in runs_of(comparison) if run["label"] in measured and run["role"] != "noise"]
