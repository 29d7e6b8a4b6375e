"""The unit, the resampling and every interval, defined once.

The unit is the item. Variants of an item (option order) are averaged into it first. Runs are compared on the same items,
and one resampling of items is used for all runs at once, so every contrast between runs is paired. Intervals are 95%
percentile intervals of the item bootstrap, resampled within topics. They cover the choice of items, not the training
seed: seeds are separate runs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

RESAMPLES = 2000
LEVEL = 0.95


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


def estimate(value: float, draws: Float[Array, " k"], n: int) -> Estimate:
    """A point value with the percentile interval of its bootstrap draws; NaN bounds where no draw is finite."""
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return Estimate(value, np.nan, np.nan, n)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(finite, [tail, 100 - tail])
    return Estimate(float(value), float(low), float(high), n)


def root_mean_square(shifts: Float[Array, "... t"]) -> Float[Array, ...]:
    """RMSE_cross over off-topic shifts (arXiv 2508.02360)."""
    return np.sqrt(np.mean(shifts**2, axis=-1))


def mean_absolute(shifts: Float[Array, "... t"]) -> Float[Array, ...]:
    """Mean |shift| over topics."""
    return np.mean(np.abs(shifts), axis=-1)
