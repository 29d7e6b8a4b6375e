"""Interventions: the static ops, and on a Torch model what carries them out. Context managers that undo and prove themselves.

A static op maps an activation a of a chosen neuron to a fixed function of a alone:

    b = a * scale + shift;    c = b * inside where low <= b <= high, else b

zero is scale 0, constant is scale 0 with a shift, range leaves scale and shift alone; ranges.py has bounds of each neuron's
own. vLLM carries out the same five numbers per neuron (harness/engines/gates.py).

Each context manager yields an `Effect` that counts what was changed; leaving the block after forward passes that changed
nothing is an error. An empty set is a no-op by definition and proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from harness.activations import visiting
from harness.errors import InputError, ProofError, choices
from harness.neurons import Neurons
from harness.ranges import RangeOp
from harness.registry import Plugin, find, installed, returned_wrong
from harness.sites import check_site, mlps, width

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Op:
    """What happens to a neuron's activation a. The defaults leave it as it is.

    Attributes:
        scale, shift: b = a * scale + shift.
        low, high, inside: b is multiplied by `inside` where low <= b <= high (NeuronLens' range mask: inside 0).
    """

    scale: float = 1.0
    shift: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    inside: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Op:
        """`zero`, `scale=X`, `constant=X`, `range=LOW:HIGH:FACTOR`, or the name (`=VALUE`) of an installed intervention.

        Raises:
            InputError: anything else, or what a plugin raises or gives wrongly.
        """
        name, _, value = text.partition("=")
        if name not in BUILT_IN and any(plugin.name == name for plugin in installed("interventions")):
            return _by_plugin(find("interventions", name), value)
        numbers = [_number(part) for part in value.split(":")] if value else []
        known = [number for number in numbers if number is not None]
        if len(known) == len(numbers):
            match name, known:
                case "zero", []:
                    return cls(scale=0.0)
                case "scale", [factor] if math.isfinite(factor):
                    return cls(scale=factor)
                case "constant", [target] if math.isfinite(target):
                    return cls(scale=0.0, shift=target)
                case "range", [low, high, factor] if low <= high and math.isfinite(factor):
                    return cls(low=low, high=high, inside=factor)
        raise InputError(
            f"--op is {text!r}; expected `zero`, `scale=X`, `constant=X` or `range=LOW:HIGH:FACTOR` (activations from LOW to "
            "HIGH are multiplied by FACTOR), such as scale=0.5 or range=-1:1:0. Installed beside them: "
            f"{choices(p.name for p in installed('interventions'))}."
        )

    @property
    def identity(self) -> bool:
        """Whether it leaves every activation as it is."""
        return (self.scale, self.shift) == (1.0, 0.0) and (self.low > self.high or self.inside == 1.0)

    @property
    def linear(self) -> bool:
        """Whether it is a multiplication, which weights can carry."""
        return self.shift == 0.0 and (self.low > self.high or self.inside == 1.0)

    def check(self, neurons: Neurons) -> None:
        """One op for all neurons fits any set."""

    def at(self, layer: int, index: Tensor) -> Op:
        """What happens to some neurons of a layer: the same."""
        return self

    def numbers(self) -> dict[str, float]:
        """What a gate holds."""
        return asdict(self)

    def apply(self, a: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The activations after the op."""
        if self.shift or self.scale != 1.0:
            a = a * self.scale + self.shift
        return a if self.low > self.high else torch.where((a >= self.low) & (a <= self.high), a * self.inside, a)

    def __str__(self) -> str:
        """The text that `parse` reads; of an op with several parts, all of them, so that no two ops have one text."""
        ranged = self.low <= self.high
        parts = [f"range={_text(self.low)}:{_text(self.high)}:{_text(self.inside)}"] if ranged else []
        if self.shift:
            affine = [f"constant={_text(self.shift)}"] if not self.scale else []
            parts = (affine or [f"scale={_text(self.scale)}", f"shift={_text(self.shift)}"]) + parts
        elif self.scale != 1.0 or not ranged:
            parts = ["zero" if self.scale == 0.0 else f"scale={_text(self.scale)}", *parts]
        return "+".join(parts)


ZERO = Op(scale=0.0)
BUILT_IN = ("zero", "scale", "constant", "range")


def _text(value: float) -> str:
    """As short as reads back as the same number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _by_plugin(plugin: Plugin, value: str) -> Op:
    """What an installed intervention makes of the text behind its name.

    Raises:
        InputError: what the plugin raises, or a result that is no op of finite numbers.
    """
    made = plugin.load()
    if not callable(made):
        raise returned_wrong(plugin, made, "a function of the text behind `=` that returns harness.interventions.Op")
    try:
        op = made(value)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"Plugin {plugin} refuses {value!r}: {' '.join(str(error).split())}.") from error
    if not isinstance(op, Op):
        raise returned_wrong(plugin, op, "harness.interventions.Op")
    numbers = [op.scale, op.shift, op.inside]
    if not all(map(math.isfinite, numbers)) or math.isnan(op.low) or math.isnan(op.high):
        raise InputError(
            f"Plugin {plugin} made {op.numbers()} of {value!r}; expected finite scale, shift and inside, and ends that are "
            "numbers."
        )
    return op


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isnan(value) else value


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
def applying(model: PreTrainedModel, neurons: Neurons, op: Op | RangeOp) -> Iterator[Effect]:
    """Carry out the op on the neurons' activations at every position.

    Raises:
        InputError: neurons of another width or depth, or ranges of another shape.
        ProofError: forward passes ran and no activation changed although the set is not empty and the op not the identity.
    """
    check_fit(model, neurons)
    op.check(neurons)
    effect = Effect()
    members = [neurons.indices(layer) for layer in range(len(neurons.mask))]
    ops = [op.at(layer, index) for layer, index in enumerate(members)]

    def visit(layer: int, activation: Tensor) -> Tensor | None:
        index = members[layer].to(activation.device)
        if not len(index):
            return None
        changed = activation.clone()
        changed[..., index] = ops[layer].apply(activation[..., index])
        effect.note(activation[..., index], changed[..., index])
        return changed

    with visiting(model, neurons.site, visit):
        yield effect
    if effect.values and not effect.largest and not op.identity:
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
