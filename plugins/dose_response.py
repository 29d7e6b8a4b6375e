"""Dose and response: what an op on more and more of a localiser's neurons does, beside random neurons of the same layers.

    change = mean over items of (value under the op) - (value without it)
    net    = change - mean over random sets of their change

A value is nats per token: the preference for the right answer over the left (pairs), or -log P of plain text, where more is
worse. Intervals are 95% BCa of one item bootstrap for all runs (harness/statistics.py), within a topic. They do not cover
the draw of the random sets, and any two sets of neurons differ once there are items enough. So an effect is told apart only
where its net is also larger than another random set's would be in 95% of draws:

    |net| > t(0.975, df) * s * sqrt(1 + 1/K)

with K random sets per dose and s^2 the variance between random sets of one dose, pooled over the localisers at one share and
outcome (df = localisers * (K - 1)); and larger than the noise floor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray as Array
from scipy import stats

from harness.errors import InputError
from harness.runs import load_measurement
from harness.statistics import LEVEL, Resampled, combine, leave_one_out, nanmean, resampled_means

Kind = Literal["suppress", "patch"]


@dataclass(frozen=True)
class Dose:
    """One condition. `seed`: of random neurons matched per layer to this localiser's at this share; None: its own."""

    kind: Kind
    localizer: str
    share: float
    seed: int | None = None

    @property
    def label(self) -> str:
        drawn = "" if self.seed is None else f"-random-{self.seed}"
        return f"{self.kind}-{self.localizer}-{100 * self.share:g}pct{drawn}"


def read_values(path: Path) -> pd.Series:
    """The first metric of every document, by topic (or task), item and prompt, variants averaged into their item."""
    _, samples = load_measurement(path)
    values = samples["values"].map(lambda text: next(iter(json.loads(str(text)).values())))
    keys = ["topic", "item"]
    table = samples[[*keys, "variant", "prompt_hash"]].assign(value=values.astype(float))
    asked = table.groupby(keys)["prompt_hash"].agg(lambda hashes: "".join(sorted(hashes)))
    found = table.groupby(keys)["value"].mean()
    return found.set_axis(pd.MultiIndex.from_arrays([*map(found.index.get_level_values, keys), asked]))


class Responses:
    """Runs over the same items; every statistic shares one resampling of each outcome's items.

    Attributes:
        outcomes: topics, and tasks that are no topics.
    """

    def __init__(self, values: Mapping[str, pd.Series], seed: int = 0) -> None:
        """`values`: label -> `read_values`.

        Raises:
            InputError: a run that was asked other prompts than the first.
        """
        first, index = next((name, one.index) for name, one in values.items())
        for name, one in values.items():
            if not one.index.equals(index):
                raise InputError(
                    f"Run {name} asked other questions than {first}; give another --out and measure all of them alike."
                )
        self.outcomes = [str(outcome) for outcome in index.get_level_values(0).unique()]
        self._means: dict[tuple[str, str], Resampled] = {}
        for number, outcome in enumerate(self.outcomes):
            rows: Float[Array, "r n"] = np.stack([one.loc[outcome].to_numpy(float) for one in values.values()])
            draws = resampled_means(rows, (seed, number))
            for column, (name, row) in enumerate(zip(values, rows, strict=True)):
                mean = Resampled(float(nanmean(row)), draws[:, column], (leave_one_out(row),), len(row))
                self._means[name, outcome] = mean

    def change(self, label: str, reference: str, outcome: str) -> Resampled:
        """Value under one run less that under another."""
        return combine(lambda a, b: a - b, self._means[label, outcome], self._means[reference, outcome])

    def net(self, label: str, randoms: Sequence[str], outcome: str) -> Resampled:
        """Value under one run less the mean over random ones; the reference cancels."""
        own, others = self._means[label, outcome], [self._means[name, outcome] for name in randoms]
        return combine(lambda a, *rest: a - sum(rest) / len(rest), own, *others)


def effects(
    responses: Responses, doses: Sequence[Dose], reference: str, counts: Mapping[Dose, int], floor: Mapping[str, float]
) -> pd.DataFrame:
    """One row per localiser's dose and outcome; `told apart` says whether it differs from random neurons.

    `reference`: label of the run without an op; `counts`: neurons; `floor`: outcome -> change between equal runs.
    """
    rows = []
    for dose in (d for d in doses if d.seed is None):
        drawn = [d.label for d in doses if d.seed is not None and _same(d, dose)]
        for outcome in responses.outcomes:
            own = responses.change(dose.label, reference, outcome).estimate()
            net = responses.net(dose.label, drawn, outcome).estimate()
            randoms = [responses.change(label, reference, outcome).value for label in drawn]
            band = chance_band(_drawn(responses, doses, dose, reference, outcome), len(randoms))
            beyond = abs(net.value) > max(floor.get(outcome, 0.0), band)
            rows.append(
                {
                    "localizer": dose.localizer,
                    "share": dose.share,
                    "neurons": counts[dose],
                    "outcome": outcome,
                    "change": own.value,
                    "change_low": own.low,
                    "change_high": own.high,
                    "random": float(np.mean(randoms)),
                    "random_least": min(randoms),
                    "random_most": max(randoms),
                    "random sets": len(randoms),
                    "net": net.value,
                    "net_low": net.low,
                    "net_high": net.high,
                    "chance band": band,
                    "told apart": "yes" if net.excludes(0) and beyond else "no",
                }
            )
    return pd.DataFrame(rows)


def chance_band(groups: Sequence[Sequence[float]], sets: int) -> float:
    """How far another random set lies from the mean of `sets` of them, in 95% of draws; infinite where it cannot be told.

    `groups`: changes under the random sets of each dose at one share and outcome.
    """
    freedom = sum(len(group) - 1 for group in groups)
    if freedom < 1:
        return float("inf")
    variance = sum(float(np.sum((np.array(group) - np.mean(group)) ** 2)) for group in groups) / freedom
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * (variance * (1 + 1 / sets)) ** 0.5


def _drawn(responses: Responses, doses: Sequence[Dose], dose: Dose, reference: str, outcome: str) -> list[list[float]]:
    """Changes under random sets of this kind and share, one list per localiser."""
    groups: dict[str, list[float]] = {}
    for other in doses:
        if other.seed is not None and (other.kind, other.share) == (dose.kind, dose.share):
            change = responses.change(other.label, reference, outcome).value
            groups.setdefault(other.localizer, []).append(change)
    return list(groups.values())


def _same(one: Dose, other: Dose) -> bool:
    return (one.kind, one.localizer, one.share) == (other.kind, other.localizer, other.share)


def noise_floor(responses: Responses, first: str, again: str) -> dict[str, float]:
    """Outcome -> |mean difference| between two runs of one model."""
    return {o: abs(responses.change(again, first, o).value) for o in responses.outcomes}


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dicts with text keys."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
