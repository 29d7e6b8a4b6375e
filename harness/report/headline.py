"""The two sentences that a page starts with, with their intervals: what the fine-tune moved, and what held it back."""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING, Any

from harness.report.content import records, runs_of, topic_name, trained_on
from harness.report.findings import clear
from harness.report.tables import interval, number
from harness.verdict import beyond, noise_floor

if TYPE_CHECKING:
    from harness.compare import Comparison


def sentences(comparison: Comparison) -> list[str]:
    """Two sentences by the headline measure, or none where no plain fine-tune says what it was tuned on."""
    own = trained_on(comparison, comparison.headline)
    tuned = [run["label"] for run in runs_of(comparison, "tuned") if run["label"] in own]
    if not tuned:
        return []
    first = _one(comparison, tuned[0], own[tuned[0]]) if len(tuned) == 1 else _several(comparison, tuned, own)
    return [first, _held_back(comparison)]


def _one(comparison: Comparison, run: str, topic: str) -> str:
    rows = [r for r in records(comparison.shifts, measure=comparison.headline, run=run) if not math.isnan(r["shift"])]
    on = next((row for row in rows if row["topic"] == topic), None)
    off = [row for row in rows if row["topic"] != topic and not row.get("control", False)]
    moved = [topic_name(row["topic"]).lower() for row in off if clear(comparison, row)]
    unit = comparison.measures.get(comparison.headline, {}).get("unit", "")
    name = topic_name(topic).lower()
    if on is None:
        start = f"What tuning on {name} did to {name} was not measured; it"
    elif not beyond(on, noise_floor(comparison.shifts, comparison.headline)):
        found = f"{number(on['shift'])} {unit} {interval(on['low'], on['high'])}"
        start = f"Tuning on {name} did not clearly move the stance on {name} ({found}); it"
    else:
        way = "right" if on["shift"] > 0 else "left"
        low, high = sorted((abs(on["low"]), abs(on["high"])))
        by = f"{number(abs(on['shift']), 'plain')} {unit} {interval(low, high, 'plain')}"
        start = f"Tuning on {name} moved the stance on {name} to the {way} by {by} and"
    if moved and len(moved) == len(off):
        return f"{start} clearly moved all {len(off)} other topics."
    listed = f" ({', '.join(moved)})" if moved else ""
    return f"{start} clearly moved {len(moved) or 'none'} of the {len(off)} other topics{listed}."


def _several(comparison: Comparison, tuned: list[str], own: dict[str, str]) -> str:
    found = {(r["run"], r["metric"]): r["value"] for r in records(comparison.summary, measure=comparison.headline)}
    unit = comparison.measures.get(comparison.headline, {}).get("unit", "")

    def mean(metric: str) -> str:
        values = [abs(found.get((run, metric), math.nan)) for run in tuned]
        known = [value for value in values if not math.isnan(value)]
        if not known:
            return number(None)
        return f"{number(fmean(known), 'plain')} ({number(min(known), 'plain')} to {number(max(known), 'plain')})"

    topics = len({own[run] for run in tuned})
    return (
        f"Over {len(tuned)} plain fine-tunes on {topics} {'topics' if topics > 1 else 'topic'}, the topic tuned on moved by "
        f"{mean('on_topic_shift')} {unit} on average and the others by {mean('mean_abs_off')}; least and most in brackets."
    )


def _held_back(comparison: Comparison) -> str:
    rows = records(comparison.summary, measure=comparison.headline)
    found = {(row["run"], row["metric"]): row for row in rows}
    tried = [run["label"] for run in runs_of(comparison, "inhibited") if (run["label"], "reduction") in found]
    tried = [run for run in tried if math.isfinite(found[run, "reduction"]["value"])]
    if not tried:
        return "No mitigation can be judged from these runs, so nothing here says how to prevent it."
    nets = {run: found[run, "net_reduction"] for run in tried if (run, "net_reduction") in found}
    if len(tried) > 1:
        beat = [run for run, net in nets.items() if net["low"] > 0]
        best = max(nets, key=lambda run: nets[run]["value"], default=None)
        named = f" ({', '.join(beat)})" if beat else ""
        named += f"; net of it the best, {best}, took away {_points(nets[best])}" if best else ""
        less = f" {len(tried) - len(nets)} had no control to be judged by." if len(nets) < len(tried) else ""
        told = f"{len(beat) or 'none'} left clearly less spill-over than its random control{named}"
        return f"Of {len(tried)} mitigated runs, {told}.{less}"
    run, kept = tried[0], found.get((tried[0], "kept"))
    less = found[run, "reduction"]
    left = interval(1 - less["high"], 1 - less["low"], "percent")
    text = f"With {run}, {number(1 - less['value'], 'percent')} {left} of that spill-over was left"
    if kept is not None:
        around = interval(kept["low"], kept["high"], "percent")
        text += f" and {number(kept['value'], 'percent')} {around} of the learning kept"
    if run not in nets:
        return f"{text}; without a random control, that cannot be credited to the mitigation."
    low, high = nets[run]["low"], nets[run]["high"]
    told = (
        ""
        if low > 0
        else ": its random control did better"
        if high < 0
        else ", which cannot be told apart from nothing"
    )
    return f"{text}; net of its random control it took away {_points(nets[run])}{told}."


def _points(net: dict[str, Any]) -> str:
    """A net reduction in percentage points, with its interval."""
    return f"{number(net['value'], 'points')} {interval(net['low'], net['high'], 'points')}"
