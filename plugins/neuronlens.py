"""NeuronLens: the range of values a concept takes in a dimension, masked instead of the whole dimension (arXiv 2502.06809).

a_j = activation of dimension j of one layer at the last token of a concept's sequences; mu, sigma = its mean and
population standard deviation over them. Saliency is mean |a_j| (the paper) or, against the other concepts,
d'_j = |mu_j - mu_rest_j| / sqrt((sigma_j^2 + sigma_rest_j^2) / 2) (ours). Salient: the top share p (0.3) of the layer's
dimensions. Range: [mu_j - tau sigma_j, mu_j + tau sigma_j], ends included, tau 2.5. At every position a salient a_j inside
its range becomes

    zero: 0      damp: a_j * 0.125 |a_j - mu_j| / (tau sigma_j)      mean: mu_j      rest: mu_rest_j   (mean, rest: ours)

and outside it stays. An infinite tau is the full mask. Does nothing at p = 0, and at tau = 0: that range is empty by
definition, even where a_j = mu_j. A dimension that never varied (sigma 0) has the range of the one value mu_j when
tau > 0; damping makes 0 of it, its limit. The control is as many random dimensions of the layer with ranges of their own:

    control = neurons.random_like(seed, exclude=neurons)

Used from Python; docs/methods/neuronlens.md has an example.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from harness.activations import visiting
from harness.errors import InputError, ProofError, choices
from harness.interventions import Effect
from harness.neurons import Neurons
from harness.ranges import RangeOp
from plugins.neuronlens_moments import Moments

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INSIDE = ("zero", "damp", "mean", "rest")
DAMPING = 0.125


def d_prime(concept: Moments, rest: Moments) -> Float[Tensor, " n"]:
    """|mu - mu_rest| / sqrt((sigma^2 + sigma_rest^2) / 2); where neither varies infinite, or 0 if the means are equal.

    Raises:
        InputError: moments of two places.
    """
    concept.check(rest)
    apart = (concept.mean - rest.mean).abs()
    pooled = ((concept.sigma**2 + rest.sigma**2) / 2).sqrt()
    return torch.where(apart > 0, apart / pooled, 0.0)


def salient(concept: Moments, share: float = 0.3, rest: Moments | None = None) -> Neurons:
    """The top `share` of the layer's dimensions by mean |a|, or by d' against `rest` where that is given.

    Rounded to the nearest number, at least one unless the share is 0; of equal scores the first dimension wins.

    Raises:
        InputError: share outside [0, 1], or moments of two places.
    """
    if not 0 <= share <= 1:
        raise InputError(f"share is {share}; expected 0 to 1 (the paper takes 0.3 of the layer's dimensions).")
    place = concept.place
    scores = concept.size if rest is None else d_prime(concept, rest)
    count = max(1, round(share * place.width)) if share else 0
    mask = torch.zeros(place.layers, place.width, dtype=torch.bool)
    mask[place.layer, scores.sort(descending=True, stable=True).indices[:count]] = True
    kept = torch.zeros(place.layers, place.width)
    kept[place.layer] = scores.float()
    return Neurons(mask, place.site, place.model, kept)


@dataclass(frozen=True)
class Ranges:
    """A concept's ranges in some dimensions of its layer. `rest`: the complement, for replacement by its mean.

    Raises:
        InputError: tau below 0 or not a number, neurons or a complement of another place.
    """

    concept: Moments
    neurons: Neurons
    tau: float = 2.5
    rest: Moments | None = None

    def __post_init__(self) -> None:
        if not self.tau >= 0:
            raise InputError(f"tau is {self.tau}; expected 0 or more standard deviations (the paper takes 2.5).")
        place, neurons = self.concept.place, self.neurons
        layers, site_width = neurons.mask.shape
        used = [layer for layer, members in enumerate(neurons.per_layer) if members]
        came = (neurons.site, layers, site_width, neurons.model)
        if came != (place.site, place.layers, place.width, place.model) or set(used) - {place.layer}:
            raise InputError(
                f"The neurons are of site {neurons.site}, {layers} layers x {site_width}, model {neurons.model[:12]}, with "
                f"members in layers {choices(used)}; expected those of {place}. Choose them by `salient` from these moments."
            )
        if self.rest is not None:
            self.concept.check(self.rest)

    @property
    def members(self) -> Bool[Tensor, " n"]:
        """Dimensions that have a range."""
        return self.neurons.mask[self.concept.place.layer].cpu()

    @property
    def half(self) -> Float[Tensor, " n"]:
        """tau * sigma, infinite where tau is."""
        sigma = self.concept.sigma
        return torch.full_like(sigma, math.inf) if math.isinf(self.tau) else self.tau * sigma

    @property
    def low(self) -> Float[Tensor, " n"]:
        """Lower ends; infinite, so that nothing lies inside, where there is no range or tau is 0."""
        return torch.where(self.members & (self.tau > 0), self.concept.mean - self.half, math.inf)

    @property
    def high(self) -> Float[Tensor, " n"]:
        """Upper ends; minus infinity where there is no range or tau is 0."""
        return torch.where(self.members & (self.tau > 0), self.concept.mean + self.half, -math.inf)

    def contains(self, a: Float[Tensor, "*shape n"]) -> Bool[Tensor, "*shape n"]:
        """Which activations lie inside their range, compared in float32 at least."""
        wide = _wide(a)
        return (wide >= self.low.to(wide)) & (wide <= self.high.to(wide))

    def constant(self, inside: str) -> Float[Tensor, " n"] | None:
        """What replaces a value inside; None for damping, where it depends on the value.

        Raises:
            InputError: an unknown name, or `rest` without a complement.
        """
        match inside:
            case "zero":
                return torch.zeros_like(self.concept.mean)
            case "mean":
                return self.concept.mean
            case "rest" if self.rest is not None:
                return self.rest.mean
            case "damp":
                return None
        known = choices(INSIDE if self.rest is not None else [name for name in INSIDE if name != "rest"])
        raise InputError(
            f"inside is {inside!r}; these ranges take {known}. `rest` needs a complement: Ranges(..., rest=rest_of(...))."
        )

    def replaced(self, a: Float[Tensor, "*shape n"], inside: str = "zero") -> Float[Tensor, "*shape n"]:
        """The activations after the mask.

        Raises:
            InputError: as `constant`.
        """
        new, wide = self.constant(inside), _wide(a)
        if new is None:
            half, distance = self.half.to(wide), (wide - self.concept.mean.to(wide)).abs()
            new = wide * torch.where(half > 0, DAMPING * distance / half, 0.0)
        return torch.where(self.contains(a), new.to(a), a)


def _wide(a: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return a.to(torch.promote_types(a.dtype, torch.float32))


@contextmanager
def masking(model: PreTrainedModel, ranges: Ranges, inside: str = "zero") -> Iterator[Effect]:
    """Inside the block the ranges are masked at every position of every forward pass; afterwards nothing is left of it.

    `inside`: what becomes of a value inside its range (`zero`, `damp`, `mean`, `rest`).

    Raises:
        InputError: a model of another shape, an unknown name, or `rest` without a complement.
        ProofError: forward passes ran and no activation changed, although there are ranges and tau is above 0.
    """
    place, members, effect = ranges.concept.place, ranges.members.nonzero().flatten(), Effect()
    place.check(model)
    ranges.constant(inside)

    def visit(layer: int, activation: Tensor) -> Tensor | None:
        if layer != place.layer or not len(members):
            return None
        changed, index = ranges.replaced(activation, inside), members.to(activation.device)
        effect.note(activation[..., index], changed[..., index])
        return changed

    with visiting(model, place.site, visit):
        yield effect
    if effect.values and not effect.largest and ranges.tau:
        raise ProofError(
            f"Masking ({inside}) the ranges of {len(members)} dimensions at {place.site} of layer {place.layer} visited "
            f"{effect.values} activations and changed none: none lay inside, or those that did already had the new value."
        )


@dataclass(frozen=True)
class GateNumbers:
    """Three of the five numbers that a gate holds per dimension (harness/engines/gates.py), float64; scale 1, shift 0.

    A gate rounds them to the model's dtype, so that in bfloat16 values near an end may fall on its other side.
    """

    low: Float[Tensor, " n"]
    high: Float[Tensor, " n"]
    inside: Float[Tensor, " n"]


def gate_numbers(ranges: Ranges, inside: str = "zero") -> GateNumbers:
    """The range mask (and at infinite tau the full mask) as numbers that do not depend on the activation.

    Not of this kind are `damp`, whose factor depends on the activation, and `mean` and `rest`, since a gate multiplies what
    lies inside a range and cannot put a value there.

    Raises:
        InputError: any of those three, or an unknown name.
    """
    ranges.constant(inside)
    if inside != "zero":
        raise InputError(
            f"inside is {inside!r}, which a gate cannot carry out: it multiplies what lies inside by a fixed factor. "
            "Expected zero; use `masking` on a Torch model for the others."
        )
    low, high = ranges.low, ranges.high
    return GateNumbers(low, high, torch.where(low <= high, 0.0, 1.0).double())


def range_op(ranges: Ranges) -> RangeOp:
    """The range mask (at infinite tau the full mask) as an op that every engine serves; use it with `ranges.neurons`.

    The bounds are rounded to float32, and by the engine to the model's dtype.
    """
    numbers, place = gate_numbers(ranges), ranges.concept.place
    return RangeOp.of_layer(place.layer, place.layers, numbers.low, numbers.high, numbers.inside)
