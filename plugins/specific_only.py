"""Specific-only training (ours, after arXiv 2508.02360's split of neurons): only the trained topic's own neurons learn.

Trained are the MLPs alone, and in them the weights of the specific neurons P_s = N_s minus G; everything else is held. If
the split is right, the topic is learnt and nothing spills over. Does nothing where P_s is empty, which is refused.
"""

from __future__ import annotations

from dataclasses import replace

from harness.errors import InputError
from harness.mitigation import Material, Mitigation, Training, holding


class SpecificOnly(Mitigation):
    """Hold every neuron but the trained topic's specific ones, and train nothing outside the MLPs."""

    def apply(self, plain: Training, material: Material) -> Training:
        specific = material.found("specific")
        if not len(specific):
            raise InputError(
                "The trained topic has no specific neurons (all are general), so there is nothing to train."
            )
        rest = replace(specific, mask=~specific.mask, scores=None)
        return holding(replace(plain, recipe=plain.recipe.model_copy(update={"only": ["*.mlp.*"]})), rest)
