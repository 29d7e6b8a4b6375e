"""How far localisers agree: their top sets beside what chance gives, their rankings, and the layers they choose.

J = |A and B| / |A or B|
chance: E[J] of two independent uniform sets of these sizes: X = |A and B| is hypergeometric, J = X / (a + b - X)
chance within layers: the same with the sets' sizes in every layer kept, J at the expected X = sum_l a_l b_l / m
rho: Spearman over all neurons; rho within layers: Spearman in every layer, averaged over layers
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray as Array
from scipy import stats
from torch import Tensor

from harness.neurons import Neurons

PARTS = ("first third", "middle third", "last third")


def top_set(scores: Float[Tensor, "l m"], share: float, model: str) -> Neurons:
    """The best `share` of all neurons of `mlp_act`, ranked over all layers.

    Raises:
        InputError: share outside (0, 1].
    """
    ranked = torch.nan_to_num(scores, nan=-torch.inf)
    return Neurons(torch.ones_like(scores, dtype=torch.bool), "mlp_act", model, ranked).top(share)


def chance(a: int, b: int, neurons: int) -> float:
    """Expected Jaccard index of two independent uniform sets of a and b out of `neurons`; exact."""
    shared = np.arange(max(0, a + b - neurons), min(a, b) + 1)
    return float(np.sum(stats.hypergeom.pmf(shared, neurons, a, b) * shared / (a + b - shared)))


def chance_within(one: Neurons, other: Neurons) -> float:
    """Jaccard index at the expected overlap of independent sets with these counts in every layer."""
    counts = np.array([one.per_layer, other.per_layer], float)
    shared = float((counts[0] * counts[1]).sum()) / one.mask.shape[1]
    return shared / (counts.sum() - shared)


def spearman(a: Float[Array, " n"], b: Float[Array, " n"]) -> float:
    """Spearman's rho; NaN where one of them has no spread."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])


def spearman_within(a: Float[Array, "l m"], b: Float[Array, "l m"]) -> float:
    """Spearman's rho within each layer, averaged over the layers in which both have spread."""
    ranks = [stats.rankdata(x, axis=1) for x in (a, b)]
    centred = [rank - rank.mean(1, keepdims=True) for rank in ranks]
    spread = np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    known = spread > 0
    return float(np.mean((centred[0] * centred[1]).sum(1)[known] / spread[known])) if known.any() else float("nan")


def agreement(scores: Mapping[str, Float[Tensor, "l m"]], share: float) -> pd.DataFrame:
    """One row per pair: pair, jaccard, chance, chance within layers, rho, rho within layers."""
    sets = {name: top_set(one, share, "") for name, one in scores.items()}
    arrays = {name: one.double().numpy() for name, one in scores.items()}
    rows = []
    for a, b in combinations(scores, 2):
        one, other = sets[a], sets[b]
        rows.append(
            {
                "pair": f"{a} and {b}",
                "jaccard": one.jaccard(other),
                "chance": chance(len(one), len(other), one.mask.numel()),
                "chance within layers": chance_within(one, other),
                "rho": spearman(arrays[a].ravel(), arrays[b].ravel()),
                "rho within layers": spearman_within(arrays[a], arrays[b]),
            }
        )
    return pd.DataFrame(rows)


def stability(
    first: Mapping[str, Float[Tensor, "l m"]], second: Mapping[str, Float[Tensor, "l m"]], share: float
) -> pd.DataFrame:
    """Each localiser with itself on two halves of the questions: what two localisers could agree at best."""
    rows = []
    for name in first:
        pair = {name: first[name], "other half": second[name]}
        row = agreement(pair, share).iloc[0].to_dict()
        rows.append({"localizer": name, **{key: value for key, value in row.items() if key != "pair"}})
    return pd.DataFrame(rows)


def layers(scores: Mapping[str, Float[Tensor, "l m"]], share: float) -> pd.DataFrame:
    """Share of a top set in each third of the layers, by localiser."""
    rows = []
    for name, one in scores.items():
        counts = np.array(top_set(one, share, "").per_layer, float)
        thirds = np.array_split(counts / counts.sum(), 3)
        parts = {part: float(third.sum()) for part, third in zip(PARTS, thirds, strict=True)}
        rows.append({"localizer": name, **parts, "fullest layer": int(counts.argmax())})
    return pd.DataFrame(rows)
