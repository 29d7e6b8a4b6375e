"""The unit, the resampling, every interval, test and reliability, each defined once.

The unit is the item. Variants of an item (wording, order, polarity, forcing, framing) are averaged into it first, so they are
clustered under it. Runs are compared on the same items, and one resampling of items is used for all runs at once, so every
contrast between runs is paired. Intervals are 95% BCa intervals of the item bootstrap (Efron 1987), resampled within topics;
p-values are those of the paired permutation test, corrected over topics by Holm and by Benjamini-Hochberg. They cover the
choice of items, not the training seed: seeds are separate runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from scipy import stats

RESAMPLES = 2000
PERMUTATIONS = 4999
SPLITS = 500
LEVEL = 0.95
POWER = 0.80


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int

    def excludes(self, value: float) -> bool:
        """Whether the interval lies wholly on one side of `value`."""
        return self.low > value or self.high < value


@dataclass(frozen=True)
class Resampled:
    """A statistic with what its interval needs.

    Attributes:
        draws: its value in every bootstrap resample, shape [k].
        jackknife: its value with each item left out, one array per topic; empty where statistics of different items
            were combined.
        n: items behind it.
    """

    value: float
    draws: Float[Array, " k"]
    jackknife: tuple[Array, ...]
    n: int

    def estimate(self) -> Estimate:
        """The value with its BCa interval; percentile where the jackknife is missing or BCa is undefined."""
        finite = self.draws[np.isfinite(self.draws)]
        if not len(finite) or not np.isfinite(self.value):
            return Estimate(float(self.value), np.nan, np.nan, self.n)
        tails = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        low, high = np.quantile(finite, _bca_tails(self.value, finite, self.jackknife, tails))
        return Estimate(float(self.value), float(low), float(high), self.n)


def _bca_tails(value: float, draws: Array, jackknife: tuple[Array, ...], tails: Array) -> Array:
    """Where in the draws a BCa interval ends: bias-corrected by z0, accelerated by a (Efron 1987, eq. 6.6 and 7.3)."""
    below = np.mean(draws < value) + 0.5 * np.mean(draws == value)
    with np.errstate(invalid="ignore"):  # a ratio whose denominator vanishes without one item: no acceleration then
        influence = [(len(part) - 1) / len(part) * (part.mean() - part) for part in jackknife if len(part)]
    spread = sum(float(np.sum(part**2)) for part in influence)
    if not 0 < below < 1 or not np.isfinite(spread) or spread <= 0:
        return tails
    skew = sum(float(np.sum(part**3)) for part in influence)
    z0, a = stats.norm.ppf(below), skew / (6 * spread**1.5)
    z = z0 + stats.norm.ppf(tails)
    return stats.norm.cdf(z0 + z / (1 - a * z))


def combine(form: Callable[..., Any], *parts: Resampled) -> Resampled:
    """A function of several statistics over one resampling; `form` works elementwise on numbers and arrays."""
    shapes = {tuple(len(one) for one in part.jackknife) for part in parts}
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(form(*(np.float64(part.value) for part in parts)))
        draws = form(*(part.draws for part in parts))
        aligned = zip(*(part.jackknife for part in parts), strict=True) if len(shapes) == 1 else ()
        jackknife = tuple(form(*row) for row in aligned)
    return Resampled(value if np.isfinite(value) else float("nan"), draws, jackknife, max(part.n for part in parts))


def nanmean(values: Float[Array, "... n"]) -> Float[Array, ...]:
    """Mean over answers that count (refused and empty ones are NaN); NaN where none does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=-1)


def resampled_means(
    values: Float[Array, "r n"], seed: int | tuple[int, ...], resamples: int = RESAMPLES
) -> Float[Array, "k r"]:
    """Means over items of several runs under one common resampling of the items: [resample, run]."""
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, values.shape[1], size=(resamples, values.shape[1]))
    return np.stack([nanmean(row[picks]) for row in values], axis=1)


def leave_one_out(values: Float[Array, " n"]) -> Float[Array, " n"]:
    """Mean without each item in turn; an item without an answer changes nothing."""
    known = np.isfinite(values)
    total, count = float(np.sum(values[known])), int(known.sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(
            known, (total - np.where(known, values, 0.0)) / np.float64(count - 1), total / np.float64(count)
        )


def root_mean_square(*shifts: Any) -> Any:
    """RMSE_cross over off-topic shifts (arXiv 2508.02360)."""
    return np.sqrt(np.mean(np.stack(shifts) ** 2, axis=0))


def mean_absolute(*shifts: Any) -> Any:
    """Mean |shift| over topics."""
    return np.mean(np.abs(np.stack(shifts)), axis=0)


def permutation_p(after: Float[Array, " n"], before: Float[Array, " n"], seed: int = 0) -> float:
    """Two-sided p of the paired permutation test on the mean difference; items unanswered in either run take no part.

    Exact where all 2^n exchanges can be tried, else over PERMUTATIONS random ones. NaN below two pairs; 1 where no
    item differs.
    """
    both = np.isfinite(after) & np.isfinite(before)
    x, y = after[both], before[both]
    if len(x) < 2:
        return float("nan")
    if np.array_equal(x, y):
        return 1.0
    test = stats.permutation_test(
        (x, y),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=PERMUTATIONS,
        vectorized=True,
        batch=500,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def corrected(p: Float[Array, " t"]) -> tuple[Float[Array, " t"], Float[Array, " t"]]:
    """p-values corrected for the number of tests: (Holm, Benjamini-Hochberg). NaN stays NaN and counts as no test."""
    from statsmodels.stats.multitest import multipletests

    known = np.isfinite(p)
    holm, bh = np.full(len(p), np.nan), np.full(len(p), np.nan)
    if known.any():
        holm[known] = multipletests(p[known], method="holm")[1]
        bh[known] = multipletests(p[known], method="fdr_bh")[1]
    return holm, bh


def detectable(differences: Float[Array, " n"]) -> float:
    """Minimum detectable mean shift: what a paired t-test of this many items with this spread finds with power 0.8.

    NaN below two items; 0 where items do not differ at all.
    """
    known = differences[np.isfinite(differences)]
    if len(known) < 2:
        return float("nan")
    spread = float(np.std(known, ddof=1))
    if spread == 0:
        return 0.0
    return _detectable_size(len(known)) * spread


@cache
def _detectable_size(n: int) -> float:
    """The same in standard deviations."""
    from statsmodels.stats.power import TTestPower

    size = TTestPower().solve_power(nobs=n, alpha=1 - LEVEL, power=POWER, alternative="two-sided")
    return float(size)


def correlation(x: Float[Array, " n"], y: Float[Array, " n"]) -> float:
    """Pearson correlation over the places where both are numbers; NaN below three or without spread."""
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 3 or np.ptp(x[both]) == 0 or np.ptp(y[both]) == 0:
        return float("nan")
    return float(np.corrcoef(x[both], y[both])[0, 1])


def spearman_brown(r: float) -> float:
    """Reliability of the whole from the correlation of its halves: 2r / (1 + r); 0 for halves that do not agree at all."""
    return 2 * r / (1 + r) if r > 0 else 0.0


def split_half(scores: Float[Array, "r n"], seed: int = 0, splits: int = SPLITS) -> float:
    """Split-half reliability of models' mean scores over items, stepped up by Spearman-Brown.

    Items are split at random into halves; the half means are correlated over models (rows); the correlation is averaged
    over splits. High when any half of the items orders and spaces the models as the other half does. NaN below three
    models or four items.
    """
    models, items = scores.shape
    if models < 3 or items < 4:
        return float("nan")
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(splits):
        order = generator.permutation(items)
        found.append(correlation(nanmean(scores[:, order[: items // 2]]), nanmean(scores[:, order[items // 2 :]])))
    known = [r for r in found if np.isfinite(r)]
    return spearman_brown(float(np.mean(known))) if known else float("nan")


def moved_beyond(low: Float[Array, " t"], high: Float[Array, " t"], floor: float) -> Bool[Array, " t"]:
    """Which intervals lie wholly beyond the noise floor, on either side."""
    return (low > floor) | (high < -floor)
