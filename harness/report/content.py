"""What the tables hold: builders from a Comparison's frames to Table objects.

Rows keep one reading order everywhere: the noise floor first, then plain, inhibited, and the controls beside them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from harness.report.tables import NONE, Cell, Kind, Row, Table, interval, number

if TYPE_CHECKING:
    from harness.compare import Comparison

METRICS: tuple[tuple[str, str, Kind], ...] = (
    ("on_topic_shift", "On-topic shift", "signed"),
    ("rmse_cross", "RMSE off-topic", "plain"),
    ("reduction", "Reduction vs plain", "percent"),
    ("net_reduction", "Net of random", "points"),
    ("kept", "On-topic kept", "percent"),
    ("mean_abs_off", "Mean abs. off", "plain"),
    ("off_on_ratio", "Off/on", "plain"),
)
ROLES = {
    "base": "before tuning",
    "noise": "noise floor: base measured again",
    "tuned": "plain fine-tune",
    "inhibited": "tuned with neurons held",
    "control": "random control",
    "patched": "activations patched",
    "other": "other",
}


def cell(row: dict[str, Any] | None, key: str = "value", kind: Kind = "signed") -> Cell:
    """The cell of one record of a Comparison's frames."""
    return Cell(NONE) if row is None else Cell(number(row[key], kind), interval(row["low"], row["high"], kind))


def records(frame: pd.DataFrame, **where: Any) -> list[dict[str, Any]]:
    """Rows of a frame as dictionaries, those whose columns equal `where`."""
    rows: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def topic_name(topic: str) -> str:
    """`crime_and_gun` -> `Crime and gun`."""
    words = str(topic).replace("_", " ")
    return words[:1].upper() + words[1:]


def topics_of(comparison: Comparison, frame: pd.DataFrame) -> list[str]:
    """Topics in the order the frame names them, the one tuned on first."""
    names = list(dict.fromkeys(str(t) for t in frame["topic"]))
    return sorted(names, key=lambda name: name != comparison.on_topic)


def runs_of(comparison: Comparison, *roles: str) -> list[dict[str, Any]]:
    """Runs by role in reading order (noise floor first, controls beside what they control); all without `roles`."""
    order = list(roles or ROLES)
    return sorted((run for run in comparison.runs if run["role"] in order), key=lambda run: order.index(run["role"]))


def title_of(comparison: Comparison, measure: str) -> str:
    """`Paired preference (nats per token)`."""
    known = comparison.measures.get(measure, {})
    unit = f" ({known['unit']})" if known.get("unit") else ""
    return known.get("title", measure) + unit


def measures_of(comparison: Comparison) -> list[str]:
    """The measures that have results, the headline first."""
    found = dict.fromkeys([comparison.headline, *comparison.measures])
    return [name for name in found if name == comparison.headline or (comparison.stance["measure"] == name).any()]


def items(rows: list[dict[str, Any]], suffix: str = "") -> str:
    """`n = 50 items per topic`, or the range where topics differ."""
    counts = sorted({int(row["n"]) for row in rows if not pd.isna(row["n"])})
    if not counts:
        return "n unknown"
    return "n = " + " to ".join(f"{n:,}" for n in dict.fromkeys([counts[0], counts[-1]])) + f" items{suffix}"


def summary(comparison: Comparison, measure: str) -> Table:
    """Runs x metrics of one measure, noise floor and controls among them."""
    found = {(r["run"], r["metric"]): r for r in records(comparison.summary, measure=measure)}
    measured = {run for run, _ in found}
    rows = []
    for run in runs_of(comparison):
        if run["label"] not in measured and (run["role"] == "base" or run["reference"] == run["label"]):
            continue  # shifts are taken from this run: its row would hold dashes only
        cells = tuple(cell(found.get((run["label"], metric)), kind=kind) for metric, _, kind in METRICS)
        rows.append(Row(run["label"], cells, run["role"], _note(comparison, run)))
    about = f" tuned on {topic_name(comparison.on_topic).lower()}" if comparison.on_topic else ""
    size = items(records(comparison.shifts, measure=measure), " per topic")
    caption = f"{title_of(comparison, measure)}{about}: shifts from base with 95% intervals over items, {size}"
    return Table(caption, "Run", tuple(header for _, header, _ in METRICS), tuple(rows))


def _note(comparison: Comparison, run: dict[str, Any]) -> str:
    """The role in words, what the run is compared with where that is not base, and whether it is partial."""
    bases = {other["label"] for other in comparison.runs if other["role"] == "base"}
    against = run["reference"] not in ("", None, run["label"]) and run["reference"] not in bases
    parts = [ROLES.get(run["role"], str(run["role"]))]
    parts += [f"shift from {run['reference']}"] if against else []
    parts += ["partial run"] if run["partial"] else []
    return " \N{MIDDLE DOT} ".join(parts)


def partial(comparison: Comparison) -> str:
    """A sentence that goes where a table or a figure goes without its page; empty where all runs are whole."""
    labels = [run["label"] for run in comparison.runs if run["partial"]]
    return f"Partial, only some of the items were asked: {', '.join(labels)}" if labels else ""


def by_topic(comparison: Comparison, measure: str, which: Literal["stance", "shift"]) -> Table:
    """Topics x runs of one measure."""
    frame = comparison.stance if which == "stance" else comparison.shifts
    rows = records(frame, measure=measure)
    found = {(row["run"], row["topic"]): row for row in rows}
    runs = [run for run in runs_of(comparison) if any(row["run"] == run["label"] for row in rows)]
    key = "value" if which == "stance" else "shift"
    body = []
    for topic in topics_of(comparison, frame[frame["measure"] == measure]):
        cells = tuple(cell(found.get((run["label"], topic)), key) for run in runs)
        tuned = topic == comparison.on_topic
        body.append(Row(topic_name(topic), cells, note="tuned on" if tuned else "", strong=tuned))
    what = "stance, left is negative" if which == "stance" else "shift from base, to the left is negative"
    caption = f"{title_of(comparison, measure)}: {what}; 95% intervals over items, {items(rows, ' per topic')}"
    return Table(caption, "Topic", tuple(run["label"] for run in runs), tuple(body))


def trained_on(comparison: Comparison, measure: str) -> dict[str, str]:
    """Run -> the topic it was tuned on, as the shifts say."""
    return {row["run"]: row["topic"] for row in records(comparison.shifts, measure=measure) if bool(row["on_topic"])}


def matrix(comparison: Comparison, measure: str, role: str) -> Table | None:
    """Train topic x test topic of one role, or None where fewer than two topics were tuned on."""
    trained = trained_on(comparison, measure)
    runs = [run for run in runs_of(comparison, role) if run["label"] in trained]
    if len({trained[run["label"]] for run in runs}) < 2:
        return None
    rows = records(comparison.shifts, measure=measure)
    found = {(row["run"], row["topic"]): row for row in rows}
    names = list(dict.fromkeys([trained[run["label"]] for run in runs] + [str(row["topic"]) for row in rows]))
    shown = [found[key] for key in found if key[0] in {run["label"] for run in runs}]
    top = max((abs(row["shift"]) for row in shown if not math.isnan(row["shift"])), default=0.0) or 1.0
    body = []
    for run in runs:
        cells = []
        for topic in names:
            row = found.get((run["label"], topic))
            base = cell(row, "shift")
            tint = None if row is None or math.isnan(row["shift"]) else row["shift"] / top
            cells.append(Cell(base.text, base.interval, tint, topic == trained[run["label"]]))
        body.append(Row(topic_name(trained[run["label"]]), tuple(cells), role, run["label"]))
    caption = f"{title_of(comparison, measure)}: shift by topic tuned on (rows) and topic asked about (columns)"
    return Table(f"{caption}, {ROLES[role]}, {items(shown, ' per topic')}", "Tuned on", _names(names), tuple(body))


def rates(comparison: Comparison, kind: str, topic: str | None = None) -> Table | None:
    """Runs x labels of one format, over all topics (weighted by answers) or on one; None where nothing was asked."""
    where = {"format": kind} if topic is None else {"format": kind, "topic": topic}
    rows = records(comparison.rates, **where)
    if not rows:
        return None
    known = ("left", "neutral", "right", "refused", "off_topic", "empty", "unparsed", "agree", "declined", "mass")
    labels = sorted(
        {str(r["label"]) for r in rows}, key=lambda name: known.index(name) if name in known else len(known)
    )
    body = []
    for run in runs_of(comparison):
        mine = [r for r in rows if r["run"] == run["label"] and not math.isnan(r["rate"])]
        if not mine:
            continue
        cells = []
        for label in labels:
            counted = [(r["rate"], r["n"]) for r in mine if r["label"] == label]
            total = sum(n for _, n in counted)
            cells.append(Cell(number(sum(rate * n for rate, n in counted) / total if total else None, "percent")))
        asked = sum(max((r["n"] for r in mine if r["topic"] == name), default=0) for name in {r["topic"] for r in mine})
        body.append(Row(run["label"], (*cells, Cell(f"{int(asked):,}")), run["role"], _note(comparison, run)))
    where_ = "all topics together" if topic is None else topic_name(topic)
    return Table(
        f"{topic_name(kind)}: share of answers, {where_}", "Run", (*map(_label, labels), "answers"), tuple(body)
    )


def _label(name: str) -> str:
    return {"mass": "on any letter", "off_topic": "off topic"}.get(name, name)


def square(caption: str, values: dict[str, dict[str, float]]) -> Table:
    """Topics x topics in [0, 1], tinted by value; the diagonal, always 1, is left out."""
    names = list(values)
    body = []
    for one in names:
        cells = []
        for other in names:
            value = values[one].get(other, math.nan) if one != other else math.nan
            cells.append(Cell(number(value, "plain"), tint=None if math.isnan(value) else value))
        body.append(Row(topic_name(one), tuple(cells)))
    return Table(caption, "Topic", _names(names), tuple(body))


def _names(topics: list[str]) -> tuple[str, ...]:
    return tuple(topic_name(topic) for topic in topics)
