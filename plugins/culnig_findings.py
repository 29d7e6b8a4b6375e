"""What a CULNIG study measured, and the sentences that say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.report.tables import Kind, interval, number
from harness.statistics import Estimate
from plugins.culnig import Masks
from plugins.culnig_effects import Effect, effect, estimate, groups, of_group
from plugins.culnig_sets import overlap, size

CHANCE = 0.25  # of four options


@dataclass(frozen=True)
class Findings:
    """Everything a study measured. `frames` and `extra`: per condition; `controls`: condition -> its control conditions."""

    settings: Any
    frames: Mapping[str, pd.DataFrame]
    extra: Mapping[str, pd.DataFrame]
    controls: Mapping[str, list[str]]
    sets: Mapping[str, Masks]
    probability: Mapping[str, Mapping[str, float]]
    trained: Mapping[str, Mapping[str, Any]]

    def effect(self, condition: str, group: str, metric: str) -> Effect:
        """A condition's effect on a group of tasks."""
        names = ["base", "base-again", condition, *self.controls[condition]]
        base, again, after, *controls = (of_group(self.frames[name], group) for name in names)
        return effect(metric, base, again, after, controls)


def sentences(found: Findings) -> list[str]:
    """What was found, each computed from the figures and true whichever way they come out."""
    said = [_level(found)]
    for condition in found.controls:
        acts = _acts(found, condition)
        said.append(f"{acts}: {_said(found.effect(condition, 'culture', 'probability'), found, condition, 'culture')}.")
        if condition in ("suppress-general", "trained-most"):
            rest = [group for group in groups(found.frames[condition]) if group != "culture"]
            moved = [group for group in rest if found.effect(condition, group, "probability").counts]
            kept = [group for group in rest if group not in moved]
            parts = [f"it moves {_and(moved)} too"] if moved else []
            parts += [f"no effect beyond its controls shows on {_and(kept)}"] if kept else []
            said.append(f"Beside culture {'; '.join(parts)} ({acts.lower()}).")
    both, jaccard = overlap(found.sets["general"], found.sets["general-compatible"])
    said.append(
        "Letting pads into the maximum, as the public code does, gives "
        f"{size(found.sets['general-compatible'])} general neurons, {both} of them among the "
        f"{size(found.sets['general'])} found without (Jaccard {jaccard:.2f})."
    )
    for name in found.settings.specific:
        if not size(found.sets[f"specific-{name}"]):
            said.append(f"No neuron is specific to {name}, so nothing was suppressed for it.")
    return said


def _level(found: Findings) -> str:
    base = of_group(found.frames["base"], "culture")
    right, gold = estimate(base["acc"]), estimate(base["probability"])
    bare = estimate(found.frames["base-noquestion"]["acc"])
    told = "which cannot be told from guessing" if right.low <= CHANCE <= right.high else "chance being 25%"
    return (
        f"The base answers {_estimate(right, 'percent')} of {right.n} culture questions right, {told}; the gold option has "
        f"{_estimate(gold, 'percent')} of the options' probability. From the options alone, with nothing asked, "
        f"{_estimate(bare, 'percent')} are right."
    )


def _acts(found: Findings, condition: str) -> str:
    verb, _, name = condition.partition("-")
    if verb == "trained":
        about = found.trained[condition]
        return (
            f"Training the {about['modules']} modules with {name} general neurons ({about['neurons']} of them) on "
            f"{found.settings.train.task}"
        )
    masks = found.sets["general" if name == "general" else f"specific-{name}"]
    doing = "Suppressing" if verb == "suppress" else f"Multiplying by {found.settings.enhance:g}"
    return (
        f"{doing} the {size(masks)} neurons {'of culture in general' if name == 'general' else f'specific to {name}'}"
    )


def _said(found_effect: Effect, found: Findings, condition: str, group: str) -> str:
    right = found.effect(condition, group, "acc")
    beside = "net of as many random neurons" if found_effect.controls else "against the base"
    if condition == "trained-most":
        beside = "net of training the modules with fewest"
    kind: Kind = "points"
    words = f"the gold option's probability on {group} changes by {_estimate(found_effect.net, kind)} {beside}"
    words += f", accuracy by {_estimate(right.net, kind)}"
    if not found_effect.counts:
        words += "; by probability this cannot be told from " + (
            "its control" if found_effect.controls else "no effect"
        )
    if found_effect.counts != right.counts:
        words += "; accuracy " + ("shows it" if right.counts else "does not show it")
    return words


def _estimate(value: Estimate, kind: Kind) -> str:
    return f"{number(value.value, kind)} {interval(value.low, value.high, kind)}".strip()


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
