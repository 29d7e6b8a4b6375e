"""How far a comparison can be believed: do halves of the items agree, what did the wording do, does the side of a prompt
change whether it is answered, do judges agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness import statistics as st
from harness.axes import unpacked
from harness.statistics import Resampled

if TYPE_CHECKING:
    from harness.compare import Measured

Frames = dict[str, pd.DataFrame]
COLUMNS = {
    "reliability": ["measure", "topic", "models", "items", "split_half"],
    "axes": ["run", "format", "axis", "level", "value", "low", "high", "n", "spread"],
    "sides": ["run", "format", "label", "left", "right", "difference", "low", "high", "n"],
    "judges": ["run", "judges", "answers", "alpha", "alpha_sides"],
}
# Of open answers, whether there is one to judge; of statements, whether an option was answered at all.
ANSWERED = {"open": ("refused", "off_topic", "empty", "unparsed"), "statements": ("mass",)}


def quality(runs: list[Measured], tables: dict[str, dict[str, pd.DataFrame]], seed: int) -> Frames:
    """The frames named in COLUMNS.

    Args:
        runs: all runs of the comparison.
        tables: measure -> run -> topic, item, value (see `harness.paired.item_values`).
    """
    made = {
        "reliability": _reliability(runs, tables, seed),
        "axes": [{"run": run.label, **row} for run in runs for row in run.manifest.get("axes") or []],
        "sides": [row for run in runs for row in _sides(run, seed)],
        "judges": [
            {"run": run.label, **found, "judges": ", ".join(found["judges"])}
            for run in runs
            if (found := run.manifest.get("judges"))
        ],
    }
    return {name: pd.DataFrame(rows, columns=COLUMNS[name]) for name, rows in made.items()}


def _reliability(runs: list[Measured], tables: dict[str, dict[str, pd.DataFrame]], seed: int) -> list[dict[str, Any]]:
    """Split-half reliability of the shifts over the models, by measure and topic.

    The noise floor is a model already there, and a patched model is asked other items on another engine: neither takes part.
    """
    models = [run.label for run in runs if run.role not in ("noise", "patched")]
    rows = []
    for measure, by_run in tables.items():
        columns = {label: by_run[label].set_index(["topic", "item"])["value"] for label in models if len(by_run[label])}
        if not columns:
            continue
        scores = pd.DataFrame(columns).dropna()
        shifts = scores.sub(scores.iloc[:, 0], axis=0)
        for topic, own in shifts.groupby(level=0):
            found = st.split_half(own.T.to_numpy(float), seed)
            shape = {"models": len(columns), "items": len(own)}
            rows.append({"measure": measure, "topic": topic, **shape, "split_half": found})
    return rows


def _sides(run: Measured, seed: int) -> list[dict[str, Any]]:
    """Rates among prompts that take the left's side and the right's: of an asker, or of a claim.

    An open prompt is asked with both, so its difference is within the item; a claim leans one way in each of its
    polarities, which are both asked of every item.
    """
    table = unpacked(run.samples)
    rows = []
    for kind, labels in ANSWERED.items():
        sided = table[(table["format"] == kind) & table["side"].isin(["left", "right"])]
        for label in labels:
            if sided.empty or label not in sided:
                continue
            items = sided.pivot_table(index=["topic", "item"], columns="side", values=label, aggfunc="mean").dropna()
            if not {"left", "right"} <= set(items.columns) or items.empty:
                continue
            left, right = (items[side].to_numpy(float) for side in ("left", "right"))
            apart = right - left
            draws = st.resampled_means(apart[None], seed)[:, 0]
            found = Resampled(float(np.mean(apart)), draws, (st.leave_one_out(apart),), len(apart)).estimate()
            means = {"left": float(np.mean(left)), "right": float(np.mean(right))}
            ends = {"difference": found.value, "low": found.low, "high": found.high, "n": found.n}
            rows.append({"run": run.label, "format": kind, "label": label, **means, **ends})
    return rows
