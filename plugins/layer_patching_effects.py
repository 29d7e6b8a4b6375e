"""From ratings under patches to Delta_Knobe under patches: per block and site, net of the shuffled control.

With d_i = harm rating - help rating of item i, everything is a mean over items, with the item bootstrap's interval:

change   d_i patched - d_i of the recipient without a patch
control  the same under the shuffled step, averaged over seeds
net      change - control; its p is that of the paired permutation test over items, corrected by Holm over all patches
recovery change / (donor - recipient), see `plugins.layer_patching`; NaN where the two models cannot be told apart, that
         is, differ by less than `least` or by an interval that includes 0

Nothing follows from `change` alone: a step of the same size in random dimensions moves ratings too.

    effects = patch_effects(sweep_ratings(...))
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray as Array

from harness import statistics as st
from harness.errors import InputError
from harness.statistics import Estimate, Resampled
from plugins.layer_patching import DIRECTIONS, LEAST, recovery
from plugins.layer_patching_sweep import NONE, PATCH

COLUMNS = ["direction", "site", "layer", "recipient", "donor", "patched", "change", "change_low", "change_high"]
COLUMNS += ["control", "net", "net_low", "net_high", "p", "p_holm", "half", "recovery", "largest", "n"]
ALPHA = 0.05


def item_means(values: Float[Array, "r i"], seed: int = 0) -> list[Estimate]:
    """Mean over items of every row with its 95% interval, under one resampling of the items."""
    draws = st.resampled_means(values, seed)
    return [
        Resampled(float(row.mean()), draws[:, n], (st.leave_one_out(row),), len(row)).estimate()
        for n, row in enumerate(values)
    ]


def difference(table: pd.DataFrame, seed: int = 0) -> Estimate:
    """Delta_Knobe of tuned minus that of base by expected value, on the items of a sweep without any patch."""
    base_donates, tuned_donates = (_unpatched(_differences(table), direction) for direction in DIRECTIONS)
    return item_means((base_donates - tuned_donates)[None], seed)[0]


def patch_effects(table: pd.DataFrame, least: float = LEAST, seed: int = 0) -> pd.DataFrame:
    """One row per direction, site and layer, in that order; the columns in rating points, p and recovery as shares.

    Args:
        table: as `plugins.layer_patching_sweep.sweep_ratings` gives it.

    Raises:
        InputError: fewer than two items, or no shuffled control.
    """
    found = _differences(table)
    kinds, items = sorted({key.kind for key in found}), table["item"].nunique()
    if items < 2 or "shuffled" not in kinds:
        raise InputError(
            f"A sweep over {items} items with the kinds {', '.join(kinds)} came; expected at least 2 items and the control "
            "`shuffled`."
        )
    apart = difference(table, seed)
    told = apart.excludes(0) and abs(apart.value) >= least
    patches = table[table["kind"] == PATCH]
    rows = []
    for (direction, site, layer), largest in _largest(patches).items():
        own = _unpatched(found, direction)
        donor = _unpatched(found, next(d for d in DIRECTIONS if d != direction))
        means = {kind: _mean_of(found, kind, direction, site, layer) for kind in kinds if kind != NONE}
        patched, control = means[PATCH], means["shuffled"]
        change, net = item_means(np.stack([patched - own, patched - control]), seed)
        row: dict[str, Any] = {"direction": direction, "site": site, "layer": layer, "largest": largest, "n": items}
        row |= {"recipient": float(own.mean()), "donor": float(donor.mean()), "patched": float(patched.mean())}
        row |= {"change": change.value, "change_low": change.low, "change_high": change.high}
        row |= {"control": float((control - own).mean()), "net": net.value, "net_low": net.low, "net_high": net.high}
        row["p"] = st.permutation_p(patched, control, seed)
        row["half"] = float((means["half"] - own).mean()) if "half" in means else math.nan
        row["recovery"] = recovery(row["patched"], row["recipient"], row["donor"], least) if told else math.nan
        rows.append(row)
    effects = pd.DataFrame(rows)
    effects["p_holm"] = st.corrected(effects["p"].to_numpy(float))[0]
    return effects[COLUMNS]


class _Key(NamedTuple):
    kind: str
    direction: str
    site: str
    layer: int
    seed: int


def _differences(table: pd.DataFrame) -> dict[_Key, Float[Array, " i"]]:
    """Harm minus help of every item, items in one order."""
    wide = table.pivot(index=list(_Key._fields), columns=["condition", "item"], values="rating").sort_index(axis=1)
    differences = wide["harm"].to_numpy(float) - wide["help"].to_numpy(float)
    return {_Key(*key): row for key, row in zip(wide.index.tolist(), differences, strict=True)}


def _unpatched(found: dict[_Key, Float[Array, " i"]], direction: str) -> Float[Array, " i"]:
    return next(row for key, row in found.items() if (key.kind, key.direction) == (NONE, direction))


def _mean_of(
    found: dict[_Key, Float[Array, " i"]], kind: str, direction: str, site: str, layer: int
) -> Float[Array, " i"]:
    """Mean over the seeds of a control; a patch has one."""
    return np.mean([row for key, row in found.items() if key[:4] == (kind, direction, site, layer)], axis=0)


def _largest(patches: pd.DataFrame) -> dict[tuple[str, str, int], float]:
    """(direction, site, layer) -> largest change of an activation, in the sweep's order."""
    largest: dict[tuple[str, str, int], float] = {}
    for direction, site, layer, size in patches[["direction", "site", "layer", "largest"]].itertuples(index=False):
        largest[direction, site, int(layer)] = max(largest.get((direction, site, int(layer)), 0.0), float(size))
    return largest
