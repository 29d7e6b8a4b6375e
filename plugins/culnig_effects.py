"""What an intervention did to the culture and the control tasks, net of its matched controls, with intervals.

Per item: effect = condition - mean of its controls, on accuracy and on the gold letter's probability. Items are resampled
within tasks, all conditions on the same resamples. An effect counts where six items or more stand behind it, its interval
excludes 0, it is larger than the noise floor, and the condition's own change lies outside the changes that the controls made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.errors import InputError
from harness.statistics import Estimate, Resampled, leave_one_out, resampled_means

METRICS = ("acc", "probability")
SEED = 0
LEAST = 6  # of fewer items, all move the same way by chance in more than one case of twenty


@dataclass(frozen=True)
class Effect:
    """One condition on one group of tasks, by one metric.

    Attributes:
        own: mean change from the base. `net`: mean difference from the controls, of which `controls` holds every change from
            the base; without controls it is the change from the base.
        floor: the largest change that asking the base again made.
    """

    before: Estimate
    after: Estimate
    own: float
    net: Estimate
    controls: tuple[float, ...]
    floor: float

    @property
    def counts(self) -> bool:
        """Whether the effect is told from its controls and from noise."""
        if self.net.n < LEAST or not self.net.excludes(0.0) or abs(self.net.value) <= self.floor:
            return False
        return not self.controls or not min(self.controls) <= self.own <= max(self.controls)


def by_item(samples: pd.DataFrame) -> pd.DataFrame:
    """A measurement's samples -> one row per (task, item, prompt) with `acc` and `probability`.

    Raises:
        InputError: samples of tasks that have no such metrics.
    """
    values = pd.DataFrame([json.loads(text) for text in samples["values"]])
    if missing := [metric for metric in METRICS if metric not in values or values[metric].isna().any()]:
        raise InputError(f"The samples have no {missing[0]}; expected those of the culture tasks.")
    keys = ("task", "item", "prompt_hash")  # measurements of other prompts have another index, and are not paired
    index = pd.MultiIndex.from_arrays([samples[key] for key in keys], names=keys)
    return values[list(METRICS)].set_index(index).sort_index()


def group_of(task: str) -> str:
    """`culture` for every country's task, else the task's own short name."""
    if task in ("culture_copying", "culture_noquestion"):
        return task.removeprefix("culture_")
    if task.startswith("culture_control_"):
        return task.removeprefix("culture_control_")
    return "culture" if task.startswith("culture_") else task


def estimate(values: pd.Series) -> Estimate:
    """Mean over items with its interval; items are resampled within their task. `values`: by (task, item)."""
    parts = [part.to_numpy(float) for _, part in values.groupby(level="task", sort=True)]
    sizes, n = [len(part) for part in parts], len(values)
    means = [resampled_means(part[None], (SEED, number))[:, 0] for number, part in enumerate(parts)]
    draws = sum(size * one for size, one in zip(sizes, means, strict=True)) / n
    jackknife = tuple(leave_one_out(part) for part in parts if len(part) > 1)
    return Resampled(float(values.mean()), np.asarray(draws), jackknife, n).estimate()


def effect(
    metric: str,
    base: pd.DataFrame,
    again: pd.DataFrame,
    condition: pd.DataFrame,
    controls: Sequence[pd.DataFrame],
) -> Effect:
    """One condition's effect on the items given, all of which every measurement must hold.

    Raises:
        InputError: measurements of different items.
    """
    before = base[metric]
    frames = [frame[metric] for frame in (again, condition, *controls)]
    if any(not frame.index.equals(before.index) for frame in frames):
        raise InputError(
            "The measurements are of different items or prompts; measure all with the same tasks and limit."
        )
    repeated, after, *others = frames
    against = sum(others) / len(others) if others else before
    return Effect(
        before=estimate(before),
        after=estimate(after),
        own=float((after - before).mean()),
        net=estimate(after - against),
        controls=tuple(float((other - before).mean()) for other in others),
        floor=float((repeated - before).abs().max())
        if metric == "probability"
        else abs(float((repeated - before).mean())),
    )


def of_group(frame: pd.DataFrame, group: str) -> pd.DataFrame:
    """The rows of one group of tasks, or of one task."""
    tasks = frame.index.get_level_values("task")
    return frame[[group in (task, group_of(task)) for task in tasks]]


def groups(frame: pd.DataFrame) -> list[str]:
    """The groups a measurement holds, culture first."""
    found = list(dict.fromkeys(group_of(task) for task in frame.index.get_level_values("task")))
    return sorted(found, key=lambda name: (name != "culture", name))
