"""Interventions on a Torch model: zero, scale, replace (by a donor). Context managers that always undo and prove themselves.

Each yields an `Effect` that counts what was changed; leaving the block after forward passes that changed nothing is an
error. An empty set is a no-op by definition and proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from harness.activations import visiting
from harness.errors import InputError, ProofError
from harness.neurons import Neurons
from harness.sites import check_site, mlps, width

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Op:
    """What happens to a neuron: `zero` is `scale` by 0."""

    name: Literal["zero", "scale"]
    factor: float

    @classmethod
    def parse(cls, text: str) -> Op:
        """`zero` or `scale=X`.

        Raises:
            InputError: anything else.
        """
        if text == "zero":
            return cls("zero", 0.0)
        name, _, value = text.partition("=")
        try:
            if name == "scale" and math.isfinite(float(value)):
                return cls("scale", float(value))
        except ValueError:
            pass
        raise InputError(f"--op is {text!r}; expected `zero` or `scale=X` with a finite number X, such as scale=0.5.")

    def __str__(self) -> str:
        return "zero" if self.name == "zero" else f"scale={self.factor:g}"


@dataclass
class Effect:
    """What an intervention did: activations visited, and the largest absolute change."""

    values: int = 0
    largest: float = 0.0

    def note(self, before: Tensor, after: Tensor) -> None:
        self.values += before.numel()
        if before.numel():
            self.largest = max(self.largest, float((after - before).abs().max()))


def check_fit(model: PreTrainedModel, neurons: Neurons) -> None:
    """Refuse neurons of another width or depth.

    Raises:
        InputError: the neurons do not have the model's shape at their site.
    """
    neurons.check_shape(width(model, neurons.site), len(mlps(model)))


@contextmanager
def scaling(model: PreTrainedModel, neurons: Neurons, op: Op) -> Iterator[Effect]:
    """Multiply the neurons' activations by the op's factor at every position.

    Raises:
        InputError: neurons of another width or depth.
        ProofError: forward passes ran and no activation changed although the set is not empty and the factor not 1.
    """
    check_fit(model, neurons)
    effect = Effect()
    members = [neurons.indices(layer) for layer in range(len(neurons.mask))]

    def visit(layer: int, activation: Tensor) -> Tensor | None:
        index = members[layer].to(activation.device)
        if not len(index):
            return None
        changed = activation.clone()
        changed[..., index] *= op.factor
        effect.note(activation[..., index], changed[..., index])
        return changed

    with visiting(model, neurons.site, visit):
        yield effect
    if effect.values and not effect.largest and op.factor != 1:
        raise ProofError(f"{op} on {len(neurons)} neurons visited {effect.values} activations and changed none.")


class DonorPatch:
    """Replace a recipient's activations at the neurons by a donor's, position by position.

    Run the donor inside `recording()` and then the recipient inside `replacing()` on the same token ids.
    Identities: an empty set leaves the recipient as it is; all neurons of all sites give the donor where the rest is
    shared.
    """

    def __init__(self, neurons: Neurons) -> None:
        self.neurons = neurons
        self.effect = Effect()
        self._members = [neurons.indices(layer) for layer in range(len(neurons.mask))]
        self._recorded: dict[int, Tensor] = {}

    @contextmanager
    def recording(self, donor: PreTrainedModel) -> Iterator[None]:
        check_fit(donor, self.neurons)
        self._recorded.clear()

        def visit(layer: int, activation: Tensor) -> None:
            if len(self._members[layer]):
                self._recorded[layer] = activation[..., self._members[layer].to(activation.device)].detach()

        with visiting(donor, self.neurons.site, visit):
            yield

    @contextmanager
    def replacing(self, recipient: PreTrainedModel) -> Iterator[None]:
        check_fit(recipient, self.neurons)

        def visit(layer: int, activation: Tensor) -> Tensor | None:
            if not len(self._members[layer]):
                return None
            if layer not in self._recorded:
                raise ProofError(f"No activations of the donor were recorded at layer {layer}; run the donor first.")
            index, donated = self._members[layer].to(activation.device), self._recorded[layer]
            if donated.shape[:-1] != activation.shape[:-1]:
                raise ProofError(
                    f"Donor ran on {tuple(donated.shape[:-1])} tokens, recipient on {tuple(activation.shape[:-1])}."
                )
            changed = activation.clone()
            changed[..., index] = donated.to(activation.dtype)
            self.effect.note(activation[..., index], changed[..., index])
            return changed

        with visiting(recipient, self.neurons.site, visit):
            yield

    def prove(self) -> None:
        """Raise where patching visited activations and changed none.

        Raises:
            ProofError: donor and recipient agree on every patched activation.
        """
        if len(self.neurons) and not self.effect.largest:
            raise ProofError(
                f"Patching {len(self.neurons)} neurons changed no activation; is the donor the recipient itself?"
            )


def all_neurons(layers: int, site_width: int, site: str, model: str) -> Neurons:
    """Every neuron of a site: the set that turns a recipient's site into the donor's."""
    return Neurons(torch.ones(layers, site_width, dtype=torch.bool), check_site(site), model)
