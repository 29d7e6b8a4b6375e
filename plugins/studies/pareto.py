"""The page of the mitigations: which of them keep what was learnt and leave little of what spilt over.

A mitigation `holds` when it leaves at most half of the plain fine-tune's spill-over on unseen topics, keeps at least 90% of
what was learnt, costs at most 2% perplexity on neutral text, and leaves less than its matched control with a 95% interval
clear of zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from harness.report.figures import axes_at, canvas
from harness.report.sheet import Picture, Section, Sheet
from harness.report.svg import NARROW, TOKENS
from harness.report.tables import interval, number
from harness.statistics import Estimate
from plugins.studies.spillover import PLAIN, Effects, Shifts

HALF, MOST, COST = 0.5, 0.9, 0.02
TEXT = "neutral_text"


def summary(shifts: Shifts, controls: Mapping[str, str | None]) -> pd.DataFrame:
    """One row per mitigation, the plain fine-tune first; ends of intervals in columns NAME_low and NAME_high."""
    effects, rows = Effects(shifts), []
    for label in (PLAIN, *controls):
        against = controls.get(label)
        row: dict[str, Any] = {"mitigation": label, "cells": len(shifts.cells(label))}
        found = {
            "learnt": effects.learnt(label).estimate(),
            "kept": effects.kept(label).estimate(),
            "spilt": effects.spilt(label).estimate(),
            "left": effects.left(label).estimate(),
            "net of control": effects.left(label, against).estimate() if against else _nothing(),
        }
        if TEXT in shifts.other["noise", None]:
            found["perplexity"] = _perplexity(effects.change(label, TEXT).estimate())
            found["perplexity against plain"] = _perplexity(effects.change(label, TEXT, PLAIN).estimate())
        for task in sorted(shifts.other["noise", None]):
            if task != TEXT:
                found[task] = effects.change(label, task).estimate()
        for name, estimate in found.items():
            row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        row["control"] = against or "none"
        row["holds"] = "yes" if _holds(row) else "no"
        rows.append(row)
    return pd.DataFrame(rows)


def _nothing() -> Estimate:
    return Estimate(math.nan, math.nan, math.nan, 0)


def _perplexity(change: Estimate) -> Estimate:
    return Estimate(math.expm1(change.value), math.expm1(change.low), math.expm1(change.high), change.n)


def _holds(row: Mapping[str, Any]) -> bool:
    cheap = "perplexity" in row and row["perplexity"] <= COST
    return bool(row["left"] <= HALF and row["kept"] >= MOST and cheap and row["net of control_high"] < 0)


def sheet(shifts: Shifts, controls: Mapping[str, str | None], about: Mapping[str, Any]) -> Sheet:
    """Everything that was found, on one page."""
    table = summary(shifts, controls)
    ends = {
        c.removesuffix("_low"): (c, c.removesuffix("_low") + "_high") for c in table.columns if str(c).endswith("_low")
    }
    kinds = {
        "kept": "percent",
        "left": "percent",
        "net of control": "points",
        "learnt": "signed",
        "perplexity": "percent",
    }
    kinds |= {"perplexity against plain": "percent"} | {c: "points" for c in ends if c not in {*kinds, "spilt"}}
    kinds["perplexity against plain"] = "percent"
    picture = Picture(_finding(table), _words(table), lambda width: pareto(table, width))
    text = (
        "Spill-over left: root mean square shift of the topics that no training of a cell saw. Learning kept: shift of the "
        "trained topic. Both as shares of the plain fine-tune's, over the cells that a mitigation was carried out in. Dashed "
        "lines: at most half left, at least 90% kept. Wide intervals leave the picture; the table has them whole."
    )
    return Sheet(
        f"Mitigations of spill-over on {about['model']}",
        "Fine-tuned on one topic, without the others following",
        tuple(sentences(table, Effects(shifts).noise())),
        (
            Section("pareto", "Kept against left", text, None, picture),
            Section(
                "summary",
                "Every mitigation",
                "Learnt and spilt in nats per token of paired preference, the rest as shares, with 95% intervals over items "
                "and seeds. Perplexity is the change on neutral text (negative: a gain); tasks are changes of accuracy.",
                table,
                intervals=ends,
                kinds=kinds,  # type: ignore[arg-type]
            ),
            Section(
                "topics",
                "Topic by topic",
                "Mean shift over items in nats per token, right minus left.",
                by_topic(shifts),
                kinds=dict.fromkeys(by_topic(shifts).columns[2:], "signed"),
            ),
        ),
        about,
    )


def sentences(table: pd.DataFrame, noise: float) -> list[str]:
    """What a reader must know, the verdict first."""
    rows = _records(table)
    plain, others = rows[0], rows[1:]
    holding = [str(r["mitigation"]) for r in others if r["holds"] == "yes"]
    mark = (
        "leaves at most half of the plain fine-tune's spill-over on unseen topics, keeps at least 90% of what was learnt, "
        "costs at most 2% perplexity, and beats its matched control with an interval clear of zero"
    )
    tried = len(others) - len({row["control"] for row in others} - {"none"})
    found = [f"{' and '.join(holding)}: {mark}." if holding else f"No mitigation of the {tried} tried {mark}."]
    found.append(
        f"Plain fine-tunes moved the trained topic by {_said(plain, 'learnt', 'signed')} nats per token and the unseen ones "
        f"by {_said(plain, 'spilt', 'plain')} (root mean square) over {_cells(plain)}; the base measured again moved "
        f"by {number(noise, 'plain')}."
    )
    for row in others:
        kept = _said(row, "kept", "percent")
        text = f"{row['mitigation']}: {_said(row, 'left', 'percent')} of the spill-over left, {kept} kept"
        if row["control"] != "none":
            low, high = row["net of control_low"], row["net of control_high"]
            told = "less than" if high < 0 else "more than" if low > 0 else "not told apart from"
            text += f"; {told} {row['control']} ({_said(row, 'net of control', 'points')})"
        found.append(f"{text}, {_cells(row)}.")
    return found


def _cells(row: Mapping[str, Any]) -> str:
    return f"{row['cells']} cell{'s' * (row['cells'] != 1)}"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _said(row: Mapping[str, Any], name: str, kind: Any) -> str:
    around = interval(row[f"{name}_low"], row[f"{name}_high"], kind)
    return f"{number(row[name], kind)} {around}".strip()


def by_topic(shifts: Shifts) -> pd.DataFrame:
    """Mean shift of every label in every cell: cell, mitigation, then one column per topic."""
    rows = []
    for (label, cell), tables in sorted(shifts.pairs.items(), key=lambda entry: (str(entry[0][1]), entry[0][0])):
        where = f"{cell}" if cell else "base"
        rows.append({"cell": where, "mitigation": label, **{topic: float(np.mean(v)) for topic, v in tables.items()}})
    return pd.DataFrame(rows)


def _finding(table: pd.DataFrame) -> str:
    others = table.iloc[1:]
    fit = others[others["kept"] >= MOST]
    best = (fit if len(fit) else others).sort_values("left").iloc[0]
    which = "Of those that keep 90%, " if len(fit) else "None keeps 90%; "
    return f"{which}{best['mitigation']} leaves least: {number(best['left'], 'percent')} of the spill-over"


def _words(table: pd.DataFrame) -> str:
    parts = [
        f"{r['mitigation']}: {_said(r, 'left', 'percent')} left, {_said(r, 'kept', 'percent')} kept"
        for r in _records(table)
    ]
    return "; ".join(parts) + "."


def pareto(table: pd.DataFrame, width: int) -> Figure:
    """Spill-over left (x) against learning kept (y), in percent, with intervals; numbers lead to the list below."""
    narrow = width == NARROW
    rows = _records(table)
    high, line = (260 if narrow else 380), 19
    figure = canvas(width, high + 80 + line * len(rows))
    axes = axes_at(figure, 52, 14, width - 70, high)
    controls = {str(row["control"]) for row in rows}
    for n, row in enumerate(rows):
        role = "base" if n == 0 else "control" if row["mitigation"] in controls else "inhibited"
        x, y, colour = 100 * row["left"], 100 * row["kept"], TOKENS[role]
        axes.plot([100 * row["left_low"], 100 * row["left_high"]], [y, y], color=colour, linewidth=1.2, alpha=0.7)
        axes.plot([x, x], [100 * row["kept_low"], 100 * row["kept_high"]], color=colour, linewidth=1.2, alpha=0.7)
        marker = {"base": "o", "control": "^", "inhibited": "s"}[role]
        axes.plot([x], [y], marker, color=colour, markersize=8, markeredgewidth=0, zorder=4)
        axes.annotate(
            str(n + 1), (x, y), (5, 6), textcoords="offset points", color=TOKENS["ink"], fontsize=11, zorder=5
        )
        text = f"{n + 1}  {row['mitigation']}" + ("  (control)" if role == "control" else "")
        figure.text(
            52 / width, (line * (len(rows) - n) - 6) / (high + 80 + line * len(rows)), text, color=TOKENS["ink"]
        )
    for ends, key in ((axes.set_xlim, "left"), (axes.set_ylim, "kept")):
        values = [100 * row[key] for row in rows if math.isfinite(row[key])] + [0.0, 110.0]
        ends(min(values) - 12, max(values) + 12)
    axes.axvline(100 * HALF, color=TOKENS["muted"], linewidth=1, linestyle=(0, (4, 4)))
    axes.axhline(100 * MOST, color=TOKENS["muted"], linewidth=1, linestyle=(0, (4, 4)))
    axes.grid(color=TOKENS["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("spill-over left on unseen topics, % of plain", color=TOKENS["muted"], fontsize=11)
    axes.set_ylabel("learning kept, % of plain", color=TOKENS["muted"], fontsize=11)
    return figure
