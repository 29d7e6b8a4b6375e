"""What the wording does: effect and spread of every axis along which the probes are varied.

Items stay the unit. An effect compares levels of one axis within the same item, at the first level of the other axis. Its
spread is the standard deviation of the levels, the first of them 0 and each other its effect; of kinds, which are other
items, it is that of their means. Order and polarity are read where they cannot cancel: order in the preference for the first
option (`first`), polarity in agreement whatever is said (`agree`). A stance that such an effect exceeds says more about the
form than about the matter (Roettger et al. 2024, arXiv 2402.16786).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from harness import statistics as st
from harness.statistics import Resampled

CONTRASTED = {"statements": ("wording", "forcing"), "open": ("kind", "framing")}
SEED = 0


def unpacked(samples: pd.DataFrame) -> pd.DataFrame:
    """Samples with a column for every value and every axis."""
    values = pd.DataFrame([json.loads(text) for text in samples["values"]], index=samples.index)
    axes = pd.DataFrame([json.loads(text) for text in samples["axes"]], index=samples.index)
    both = pd.concat([values, axes], axis=1)
    return pd.concat([samples.drop(columns=["values", "axes"]), both.loc[:, ~both.columns.duplicated()]], axis=1)


def axis_effects(samples: pd.DataFrame) -> pd.DataFrame:
    """One row per format, axis and level: format, axis, level, value, low, high, n, spread.

    For wording, forcing and framing `value` is the stance at that level minus the stance at the axis' first level, over
    items that were asked at both; kinds of open prompt are different items, so theirs is the stance itself. For order and
    polarity there is one row each: preference for the first option, and agreement, both -1..1 and 0 without an effect.
    """
    table = unpacked(samples)
    rows: list[dict[str, Any]] = []
    for kind, part in table.groupby("format"):
        for axis in CONTRASTED.get(str(kind), ()):
            if axis in part and part[axis].nunique() > 1:
                rows += _levels(str(kind), axis, part)
        if "first" in part and part["first"].notna().any():
            rows.append(_one(str(kind), "order", "first option", _by_item(part, part["first"])))
        if "agree" in part and part["agree"].notna().any():
            rows.append(_one(str(kind), "polarity", "agreement", _by_item(part, 2 * part["agree"] - 1)))
    return pd.DataFrame(rows, columns=["format", "axis", "level", "value", "low", "high", "n", "spread"])


def _by_item(part: pd.DataFrame, values: pd.Series) -> pd.Series:
    return values.groupby([part["topic"], part["item"]]).mean()


def _one(kind: str, axis: str, level: str, items: pd.Series, spread: float = float("nan")) -> dict[str, Any]:
    numbers = items.to_numpy(float)
    draws = st.resampled_means(numbers[None], SEED)[:, 0]
    e = Resampled(float(st.nanmean(numbers)), draws, (st.leave_one_out(numbers),), len(numbers)).estimate()
    row = {"format": kind, "axis": axis, "level": level, "value": e.value, "low": e.low, "high": e.high, "n": e.n}
    return {**row, "spread": spread}


def _levels(kind: str, axis: str, part: pd.DataFrame) -> list[dict[str, Any]]:
    # Where wordings and forcings are crossed, one axis is read at the first level of the other; where they take turns
    # (design: rotated), other wordings are asked at the first forcing alone, and the other way round.
    across = {"wording": "forcing", "forcing": "wording"}.get(axis)
    if across is not None:
        part = part[part[across] == part[across].iloc[0]]
    means = {level: _by_item(at, at["stance"]) for level, at in part.groupby(axis, sort=False)}
    (first, base), *rest = means.items()
    if axis == "kind":
        spread = float(np.std([series.mean() for series in means.values()]))
        return [_one(kind, axis, str(level), series, spread) for level, series in means.items()]
    changes = {level: (series - base).reindex(series.index) for level, series in rest}
    spread = float(np.std([0.0, *(change.mean() for change in changes.values())]))
    return [_one(kind, axis, f"{level} - {first}", change, spread) for level, change in changes.items()]
