"""Module-selective training: which whole modules to train, those with most or with fewest of a set's neurons.

A module is a gate, q, k or v projection of one layer (or what it is fused with). Both choices take about the same share of
the model's parameters, so that what differs between them is which neurons they hold (arXiv 2510.08284).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from harness.errors import InputError, choices
from harness.projections import projection_parts
from plugins.culnig import Masks
from plugins.culnig_items import Question

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Which = Literal["most", "fewest"]


@dataclass(frozen=True)
class Chosen:
    """Names of the modules that are trained, the parameters they hold and how many neurons of the set lie in them."""

    modules: list[str]
    parameters: int
    neurons: int


def choose(model: PreTrainedModel, masks: Masks, which: Which, share: float = 0.1, seed: int = 0) -> Chosen:
    """Modules with most (fewest) of the neurons, until the next would exceed `share` of the model's parameters.

    Modules with as many neurons come in random order.

    Raises:
        InputError: an unknown choice, or a share that no module fits into or that takes all of them.
    """
    if which not in ("most", "fewest"):
        raise InputError(f"which is {which!r}; choose from {choices(('most', 'fewest'))}.")
    names = {id(module): name for name, module in model.named_modules()}
    held: dict[str, int] = {}
    for number, layer in enumerate(projection_parts(model, list(masks))):
        for site, part in layer.items():
            name = names[id(part.module)]
            held[name] = held.get(name, 0) + int(masks[site][number].sum())
    order = torch.randperm(len(held), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [list(held)[n] for n in order]
    ranked = sorted(shuffled, key=lambda name: -held[name] if which == "most" else held[name])
    budget = share * sum(parameter.numel() for parameter in model.parameters())
    taken, parameters = [], 0
    for name in ranked:
        more = sum(parameter.numel() for parameter in model.get_submodule(name).parameters())
        if parameters + more > budget:
            break
        taken.append(name)
        parameters += more
    if not taken or len(taken) == len(held):
        raise InputError(
            f"A share of {share:g} of the parameters takes {len(taken)} of {len(held)} modules; expected some but not all "
            "of them: the paper trains 0.1."
        )
    return Chosen(taken, parameters, sum(held[name] for name in taken))


def pairs(questions: list[Question]) -> list[dict[str, str]]:
    """Questions as training pairs whose completion is the gold letter."""
    return [{"prompt": question.prompt, "completion": question.labels[question.answer]} for question in questions]
