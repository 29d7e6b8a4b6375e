"""The sentences over the figures and their text alternatives: what was found, in which unit, from how many items."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from harness.report.content import records, runs_of, topic_name, topics_of, trained_on
from harness.report.figures import Group, Point
from harness.report.tables import NONE, number
from harness.verdict import beyond, noise_floor

if TYPE_CHECKING:
    from harness.compare import Comparison


def groups(comparison: Comparison, measure: str, which: str) -> list[Group]:
    """What the stance and the shift figures draw, topic by topic."""
    frame = comparison.stance if which == "stance" else comparison.shifts
    key = "value" if which == "stance" else "shift"
    rows = records(frame, measure=measure)
    found = {(row["run"], row["topic"]): row for row in rows}
    runs = [run for run in _shown(comparison, which) if any(row["run"] == run["label"] for row in rows)]
    made = []
    for topic in topics_of(comparison, frame[frame["measure"] == measure]):
        points = []
        for run in runs:
            row = found.get((run["label"], topic))
            value, low, high = (row[key], row["low"], row["high"]) if row else (math.nan,) * 3
            points.append(Point(run["label"], run["role"], float(value), float(low), float(high)))
        band = _band([row for row in rows if row["topic"] == topic]) if which == "shift" else None
        made.append(Group(topic_name(topic), tuple(points), topic == comparison.on_topic, band))
    return made if runs else []


def _shown(comparison: Comparison, which: str) -> list[dict[str, Any]]:
    if which == "shift":
        return runs_of(comparison, "tuned", "inhibited", "control", "patched", "other")
    main = runs_of(comparison, "base", "tuned", "inhibited")
    return main if len(main) > 1 else runs_of(comparison, "base", "tuned", "inhibited", "patched", "other")


def _band(rows: list[dict[str, Any]]) -> tuple[float, float] | None:
    """From the lowest to the highest end of the noise runs' intervals."""
    ends = [row[key] for row in rows if row["role"] == "noise" for key in ("low", "high", "shift")]
    ends = [end for end in ends if not math.isnan(end)]
    return (min(ends), max(ends)) if ends else None


def clear(comparison: Comparison, row: dict[str, Any]) -> bool:
    """Whether a shift is beyond the noise floor, and significant after Holm's correction where the frame has it."""
    return beyond(row, noise_floor(comparison.shifts, row["measure"])) and row.get("p_holm", 0.0) < 0.05


def stance_finding(comparison: Comparison, measure: str) -> str:
    """On how many topics the first changed run stands clearly further left or right than base."""
    run = _changed(comparison)
    rows = records(comparison.shifts, measure=measure, run=run["label"]) if run else []
    if not run or not rows:
        return "Stance by topic"
    moved = [row for row in rows if clear(comparison, row)]
    right, left = sum(row["low"] > 0 for row in moved), sum(row["high"] < 0 for row in moved)
    counts = {"further right": right, "further left": left, "not clearly moved": len(rows) - right - left}
    parts = {words: count for words, count in counts.items() if count}
    if len(parts) == 1 and len(rows) > 1:
        return f"{_quoted(run)} is {next(iter(parts))} on all {len(rows)} topics"
    listed = _join([f"{words} on {count}" for words, count in parts.items()])
    return f"Of {len(rows)} {'topics' if len(rows) > 1 else 'topic'}, {_quoted(run)} is {listed}"


def shift_finding(comparison: Comparison, measure: str) -> str:
    """The on-topic shift, and what reached the other topics with and without holding neurons."""
    run = _changed(comparison)
    rows = records(comparison.shifts, measure=measure, run=run["label"]) if run else []
    rows = [row for row in rows if not math.isnan(row["shift"])]
    if not run or not rows:
        return "Shift by topic"
    found = {(row["run"], row["metric"]): row["value"] for row in records(comparison.summary, measure=measure)}
    own = trained_on(comparison, measure).get(run["label"])
    on = number(found.get((run["label"], "on_topic_shift")))
    off = number(found.get((run["label"], "mean_abs_off")), "plain")
    if own is None or NONE in (on, off):
        top = max(rows, key=lambda row: abs(row["shift"]))
        return f"{topic_name(top['topic'])} moved most, by {number(top['shift'])} ({_quoted(run)})"
    text = f"{topic_name(own)} moved by {on}, the other topics by {off} on average"
    if len(set(trained_on(comparison, measure).values())) > 1:
        return f"{text} ({_quoted(run)})"  # the other runs were tuned on other topics: not one sentence
    for role, words in (("inhibited", "with neurons held"), ("control", "in the random control")):
        values = [found.get((other["label"], "mean_abs_off"), math.nan) for other in runs_of(comparison, role)]
        ends = sorted(value for value in values if not math.isnan(value))
        several = dict.fromkeys(number(end, "plain") for end in (ends[0], ends[-1])) if ends else ()
        text += f"; {' to '.join(several)} {words}" if several else ""
    return text


def layer_finding(localization: dict[str, Any]) -> str:
    """Where the general neurons sit and how much of a topic's selection they are."""
    counts, total = localization["per_layer"].get("general", []), localization["general"]
    if not counts or not sum(counts):
        return f"{total:,} general neurons were found"
    last = sum(counts[len(counts) - len(counts) // 3 :]) / sum(counts)
    share = number(localization["general_share"], "percent")
    return (
        f"{number(last, 'percent')} of the {total:,} general neurons sit in the last third of {len(counts)} layers, "
        f"and they are {share} of each topic's selection"
    )


def described(drawn: list[Group]) -> str:
    """A figure in words: every topic, every run, its value and interval."""
    topics = []
    for group in drawn:
        runs = [
            f"{p.label} {number(p.value)}" + ("" if math.isnan(p.low) else f" ({number(p.low)} to {number(p.high)})")
            for p in group.points
        ]
        band = f"; noise floor {number(group.band[0])} to {number(group.band[1])}" if group.band else ""
        topics.append(f"{group.name}{', tuned on' if group.marked else ''}: {', '.join(runs)}{band}")
    return ". ".join(topics) + "."


def _changed(comparison: Comparison) -> dict[str, Any] | None:
    return next(iter(runs_of(comparison, "tuned", "inhibited", "patched", "other")), None)


def _quoted(run: dict[str, Any]) -> str:
    return f"\N{LEFT DOUBLE QUOTATION MARK}{run['label']}\N{RIGHT DOUBLE QUOTATION MARK}"


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
