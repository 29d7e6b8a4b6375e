"""Diagnostics of NeuronLens (arXiv 2502.06809): how often ranges fire, how they overlap, how normal activations are.

Firing rate of dimension j = share of all real positions whose a_j lies inside the range; a range that fires as often on the
complement as on its concept separates nothing.
Overlap of two concepts in dimension j = length of the ranges' intersection / length of their union, over the dimensions
salient for both; 1 for equal ranges, 0 for disjoint or empty ones.
Shape: skew = m3 / m2^1.5 and excess kurtosis = m4 / m2^2 - 3 with population moments (0 for a normal distribution), and the
p-value of the Kolmogorov-Smirnov test. They say whether mu and tau sigma describe the values: 2.5 deviations hold 98.76%
of a normal distribution, and possibly far from that of another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from scipy.stats import ks_1samp, norm
from torch import Tensor

from harness.errors import InputError
from plugins.neuronlens import Ranges
from plugins.neuronlens_moments import Moments, Place, activations, at_last_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Firing:
    """Share of `positions` inside the range per dimension (0 where there is none), and its mean over the members."""

    rates: Float[Tensor, " n"]
    positions: int
    overall: float


def firing(model: PreTrainedModel, ranges: Ranges, sequences: list[list[int]], batch_tokens: int = 2048) -> Firing:
    """How often the ranges fire on these sequences, such as the concept's own or the complement's; 0 without ranges.

    Raises:
        InputError: no sequences, one without tokens, or a model of another shape.
    """
    place, positions = ranges.concept.place, 0
    inside = torch.zeros(place.width, dtype=torch.long)
    for _, activation, real in activations(model, sequences, place, batch_tokens):
        inside += ranges.contains(activation[real.to(activation.device)]).sum(0).cpu()
        positions += int(real.sum())
    rates, members = inside.double() / positions, ranges.members
    return Firing(rates, positions, float(rates[members].mean()) if bool(members.any()) else 0.0)


def fired(
    model: PreTrainedModel, ranges: Mapping[str, Ranges], sequences: list[list[int]], batch_tokens: int = 2048
) -> dict[str, tuple[Float[Tensor, " c"], Float[Tensor, " c"]]]:
    """Share of each concept's ranges that fire in every sequence: at its last token, and over all of them; one pass.

    Raises:
        InputError: no ranges, ranges of two places, no sequences, one without tokens, or a model of another shape.
    """
    if not ranges:
        raise InputError("No ranges to count with; expected those of a concept at least.")
    first = next(iter(ranges.values()))
    for one in ranges.values():
        first.concept.check(one.concept)
    found = {name: torch.zeros(2, len(sequences), dtype=torch.double) for name in ranges}
    for batch, activation, real in activations(model, sequences, first.concept.place, batch_tokens):
        for name, one in ranges.items():
            inside = one.contains(activation)[..., one.members.to(activation.device)].double().cpu()
            rates, seen = inside.mean(-1), real.cpu()
            found[name][0, batch] = at_last_token(rates[..., None], seen)[:, 0]
            found[name][1, batch] = (rates * seen).sum(-1) / seen.sum(-1)
    return {name: (rates[0], rates[1]) for name, rates in found.items()}


@dataclass(frozen=True)
class Overlap:
    """Intersection over union per dimension (0 where not shared), and its mean over the shared (NaN without any)."""

    shared: Bool[Tensor, " n"]
    ratios: Float[Tensor, " n"]

    @property
    def mean(self) -> float:
        return float(self.ratios[self.shared].mean()) if bool(self.shared.any()) else math.nan


def overlap(one: Ranges, other: Ranges) -> Overlap:
    """How far two concepts' ranges cover each other in the dimensions that are salient for both.

    Raises:
        InputError: ranges of two places.
    """
    one.concept.check(other.concept)
    common = torch.minimum(one.high, other.high) - torch.maximum(one.low, other.low)
    whole = torch.maximum(one.high, other.high) - torch.minimum(one.low, other.low)
    # Equal ranges are told apart first: the lengths of two single values, or of two infinite ranges, have no ratio.
    equal = (one.low == other.low) & (one.high == other.high) & (one.low <= one.high)
    ratios = torch.where(equal, 1.0, torch.where(common > 0, common / whole, 0.0))
    return Overlap(one.members & other.members, ratios)


def overlaps(ranges: Mapping[str, Ranges]) -> dict[tuple[str, str], Overlap]:
    """`overlap` of every pair of concepts.

    Raises:
        InputError: fewer than two concepts, or ranges of two places.
    """
    if len(ranges) < 2:
        raise InputError(f"{len(ranges)} concept(s) make no pair; expected the ranges of two or more.")
    return {(a, b): overlap(ranges[a], ranges[b]) for a, b in combinations(ranges, 2)}


@dataclass(frozen=True)
class Shape:
    """Skew, excess kurtosis and KS p-value per dimension; NaN where the activation never varies."""

    skew: Float[Tensor, " n"]
    kurtosis: Float[Tensor, " n"]
    normal: Float[Tensor, " n"]


def last_tokens(
    model: PreTrainedModel, sequences: list[list[int]], place: Place, batch_tokens: int = 2048
) -> Float[Tensor, "c n"]:
    """Activations at every sequence's last token, in the order given, on the CPU; memory grows with the sequences.

    Raises:
        InputError: no sequences, one without tokens, or a model of another shape.
    """
    kept: dict[int, Tensor] = {}
    for batch, activation, real in activations(model, sequences, place, batch_tokens):
        kept |= dict(zip(batch, at_last_token(activation, real).cpu(), strict=True))
    return torch.stack([kept[n] for n in range(len(sequences))])


def shape(concept: Moments, values: Float[Tensor, "c n"]) -> Shape:
    """How far a concept's activations are from normal; `values` are the ones the moments are of (`last_tokens`).

    The KS test compares them with the normal distribution of their own mean and deviation. Since those were estimated from
    the same values, the test is conservative: p is too large (even on normal values it gathers near 1 instead of being
    uniform). A small p speaks against normality all the same; a large one does not speak for it. One p per dimension, not
    corrected for how many there are.

    Raises:
        InputError: values of another number or width than the moments.
    """
    if values.shape != (concept.count, concept.place.width):
        raise InputError(
            f"The values are {tuple(values.shape)}; expected the {(concept.count, concept.place.width)} that the moments "
            "are of. Collect them by `last_tokens` from the sequences that were fitted."
        )
    count, sigma = concept.count, concept.sigma
    varies = sigma > 1e-12 * concept.size  # below this the deviation is rounding
    nan = torch.full_like(sigma, math.nan)
    skew = torch.where(varies, concept.cubes / count / sigma**3, nan)
    kurtosis = torch.where(varies, concept.fourths / count / sigma**4 - 3, nan)
    standard = ((values.cpu().double() - concept.mean) / sigma)[:, varies]
    normal = nan.clone()
    if bool(varies.any()):
        result: Any = ks_1samp(standard.numpy(), norm.cdf, axis=0)
        normal[varies] = torch.from_numpy(result.pvalue).double()
    return Shape(skew, kurtosis, normal)
