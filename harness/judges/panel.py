"""Several judges on the same answers: the first gives the stance, all of them the agreement.

Agreement is Krippendorff's alpha for nominal labels (Krippendorff 2004, ch. 11): 1 is perfect, 0 is what chance gives; below
.67 conclusions are tentative at best. It is computed over the sides and, apart, over all labels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness import judges
from harness.judges import LABELS, SIDES


def relabel(samples: pd.DataFrame, spec: str, start: Any = judges.get) -> pd.DataFrame:
    """Samples whose open answers carry every judge's label, and the values of the first judge's.

    `start(name)` gives a judge; each is closed before the next starts, so that one model is in memory at a time.

    Raises:
        InputError: a judge that does not exist or cannot be reached.
    """
    opened = samples["format"] == "open"
    wanted = judges.names(spec)
    if wanted == [judges.EMBEDDED] or not opened.any():
        return samples
    rows = samples[opened]
    labels = [json.loads(text) for text in rows["labels"]]
    for name in wanted:
        if name == judges.EMBEDDED:
            continue
        judge = start(name)
        try:
            found = judge.judge(list(rows["question"]), list(rows["answer"]))
        finally:
            judge.close()
        for label, judgement in zip(labels, found, strict=True):
            label[name] = judgement.label
    values = [
        json.dumps({k: None if math.isnan(v) else v for k, v in judges.as_values(label[wanted[0]]).items()})
        for label in labels
    ]
    changed = samples.copy()
    changed.loc[opened, "labels"] = [json.dumps({name: label[name] for name in wanted}) for label in labels]
    changed.loc[opened, "values"] = values
    return changed


def with_judged(results: dict[str, Any], samples: pd.DataFrame) -> dict[str, Any]:
    """lm-eval's results with the open tasks' metrics as the samples have them now."""
    for task, rows in samples[samples["format"] == "open"].groupby("task"):
        values = pd.DataFrame([json.loads(text) for text in rows["values"]]).astype(float)
        metrics = {f"{name},none": value for name, value in values.mean().fillna(0.0).items() if name != "abs_stance"}
        results["results"][task].update(metrics)
    return results


def alpha(labels: Sequence[Sequence[str | None]], among: Sequence[str] = LABELS) -> float:
    """Krippendorff's alpha of `labels` [judge][answer]; labels outside `among` count as not rated.

    NaN where fewer than two judges rated any answer, or only one label was ever given.
    """
    import krippendorff

    codes = {name: float(n) for n, name in enumerate(among)}
    ratings = np.array([[codes.get(label or "", np.nan) for label in one] for one in labels])
    rated = ratings[:, np.isfinite(ratings).sum(axis=0) > 1] if len(ratings) > 1 else np.empty((0, 0))
    if rated.size == 0 or len(np.unique(rated[np.isfinite(rated)])) < 2:
        return float("nan")
    return float(krippendorff.alpha(reliability_data=rated, level_of_measurement="nominal"))


def agreement(samples: pd.DataFrame) -> dict[str, Any] | None:
    """Alpha between the judges of a run's open answers, over all labels and over the sides; None below two judges."""
    rows = [json.loads(text) for text in samples.loc[samples["format"] == "open", "labels"]]
    judged = sorted({name for row in rows for name in row})
    if len(judged) < 2:
        return None
    labels = [[row.get(name) for row in rows] for name in judged]
    return {"judges": judged, "answers": len(rows), "alpha": alpha(labels), "alpha_sides": alpha(labels, SIDES)}
