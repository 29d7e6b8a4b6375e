"""NeuronLens' ingredients (arXiv 2502.06809): how the activations of a layer's dimensions spread over a concept's sequences.

Activations at the last token of every sequence, at one site of one layer, as running float64 sums; memory does not grow
with the number of sequences. Padding on either side and the order of batches change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor

from harness.activations import batches, forward, pad, position_ids, visiting
from harness.errors import InputError, choices
from harness.files import write_tensors
from harness.sites import SiteName, check_site, mlps, width

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMS = ("mean", "size", "squares", "cubes", "fourths")


@dataclass(frozen=True)
class Place:
    """One layer of `layers`, at a site of `width` dimensions, in the model with this weights hash."""

    site: SiteName
    layer: int
    layers: int
    width: int
    model: str

    @classmethod
    def of(cls, model: PreTrainedModel, weights: str, site: str = "resid_post", layer: int = -1) -> Place:
        """A layer of a model; `weights` is the model's hash, negative layers count from the last.

        Raises:
            InputError: unknown site, or no such layer.
        """
        known, layers = check_site(site), len(mlps(model))
        if not -layers <= layer < layers:
            raise InputError(
                f"There is no layer {layer}; expected 0 to {layers - 1}, or -1 for the last (the paper's)."
            )
        return cls(known, layer % layers, layers, width(model, known), weights)

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model of another shape.

        Raises:
            InputError: other depth or width.
        """
        found = len(mlps(model)), width(model, self.site)
        if found != (self.layers, self.width):
            raise InputError(
                f"The activations are of {self.layers} layers x {self.width} at {self.site}; the model has {found[0]} x "
                f"{found[1]}. They come from another model: fit the concepts on this one."
            )


@dataclass(frozen=True)
class Moments:
    """Of a concept's activations, float64 on the CPU, in activation units.

    Attributes:
        count: how many sequences.
        mean, size: mean of a, and of |a|.
        squares, cubes, fourths: sums of (a - mean) to the powers 2, 3 and 4.
    """

    place: Place
    count: int
    mean: Float[Tensor, " n"]
    size: Float[Tensor, " n"]
    squares: Float[Tensor, " n"]
    cubes: Float[Tensor, " n"]
    fourths: Float[Tensor, " n"]

    @classmethod
    def of(cls, values: Float[Tensor, "c n"], place: Place) -> Moments:
        """Moments of values held in memory, one row per sequence.

        Raises:
            InputError: values that are infinite or not a number.
        """
        a = values.cpu().double()
        if not bool(a.isfinite().all()):
            raise InputError(
                f"Activations at {place.site} of layer {place.layer} are not all finite, so they have no mean; expected "
                "finite ones. Load the model in float32 or bfloat16."
            )
        mean = a.mean(0)
        off = a - mean
        return cls(place, len(a), mean, a.abs().mean(0), (off**2).sum(0), (off**3).sum(0), (off**4).sum(0))

    @property
    def sigma(self) -> Float[Tensor, " n"]:
        """Population standard deviation."""
        return (self.squares / self.count).sqrt()

    def check(self, other: Moments) -> None:
        """Refuse moments of another place.

        Raises:
            InputError: another site, layer, width or model.
        """
        if self.place != other.place:
            raise InputError(
                f"Activations of {self.place} do not go with those of {other.place}; fit both at one place."
            )

    def __add__(self, other: Moments) -> Moments:
        """Moments over the sequences of both.

        Sums about each part's own mean are moved to the common one (Pebay, SAND2008-6212): sums of plain powers would
        lose every digit where a mean is large beside its deviation, as in the residual stream.
        """
        self.check(other)
        p, q = self.count, other.count
        n, d = p + q, other.mean - self.mean
        squares = self.squares + other.squares + d**2 * (p * q / n)
        cubes = self.cubes + other.cubes + d**3 * (p * q * (p - q) / n**2)
        cubes = cubes + 3 * d * (p * other.squares - q * self.squares) / n
        fourths = self.fourths + other.fourths + d**4 * (p * q * (p * p - p * q + q * q) / n**3)
        fourths = fourths + 6 * d**2 * (p * p * other.squares + q * q * self.squares) / n**2
        fourths = fourths + 4 * d * (p * other.cubes - q * self.cubes) / n
        size = (p * self.size + q * other.size) / n
        return Moments(self.place, n, self.mean + d * (q / n), size, squares, cubes, fourths)


def activations(
    model: PreTrainedModel, sequences: list[list[int]], place: Place, batch_tokens: int = 2048, left: bool = False
) -> Iterator[tuple[list[int], Float[Tensor, "b s n"], Bool[Tensor, "b s"]]]:
    """Batch by batch: numbers of its sequences, activations, and which positions are no padding.

    Raises:
        InputError: no sequences, one without tokens, or a model of another shape.
    """
    place.check(model)
    if not sequences or not all(sequences):
        raise InputError("No sequences, or one without tokens among them; expected lists of at least one token each.")
    device, seen = next(model.parameters()).device, []

    def keep(layer: int, activation: Tensor) -> None:
        if layer == place.layer:
            seen.append(activation.detach())

    for batch in batches(sequences, batch_tokens):
        ids, real = pad([sequences[n] for n in batch], 0, device, left)
        with visiting(model, place.site, keep):
            _forward(model, ids, real if left else None)
        yield batch, seen.pop(), real


@torch.no_grad()
def _forward(model: PreTrainedModel, ids: Int[Tensor, "b s"], real: Bool[Tensor, "b s"] | None) -> None:
    if real is None:
        forward(model, ids)
    else:
        positions = position_ids(real)
        model.base_model(input_ids=ids, attention_mask=real.long(), position_ids=positions, use_cache=False)


def at_last_token(activation: Float[Tensor, "b s n"], real: Bool[Tensor, "b s"]) -> Float[Tensor, "b n"]:
    """The activations at the last position of each row that is no padding, on either side."""
    ends = torch.where(real, torch.arange(real.shape[1], device=real.device), 0).amax(1)
    return activation[torch.arange(len(ends)), ends.cpu()]


def fit(
    model: PreTrainedModel,
    concepts: Mapping[str, list[list[int]]],
    place: Place,
    batch_tokens: int = 2048,
    left: bool = False,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, Moments]:
    """Moments at the last tokens of every concept's sequences, in one streaming pass of shared batches.

    `left`: pad on the left, which changes nothing but rounding. `advance(n)` is told of n finished sequences. The paper
    takes the sequences that the model answers right; choosing them is the caller's.

    Raises:
        InputError: no concepts, fewer than two sequences of one, a sequence without tokens, a model of another shape, or
            activations that are not finite.
    """
    if not concepts:
        raise InputError("No concepts to fit; expected a list of token sequences for each.")
    if few := [concept for concept, sequences in concepts.items() if len(sequences) < 2]:
        raise InputError(f"Fewer than two sequences for {choices(few)}; a range needs at least two, better hundreds.")
    flat = [(concept, ids) for concept, sequences in concepts.items() for ids in sequences]
    found: dict[str, Moments] = {}
    for batch, activation, real in activations(model, [ids for _, ids in flat], place, batch_tokens, left):
        last, names = at_last_token(activation, real), [flat[n][0] for n in batch]
        for concept in dict.fromkeys(names):
            part = Moments.of(last[[row for row, name in enumerate(names) if name == concept]], place)
            found[concept] = found[concept] + part if concept in found else part
        advance(len(batch))
    return {concept: found[concept] for concept in concepts}


def save_moments(moments: Mapping[str, Moments], path: Path) -> None:
    """Write moments of one place as safetensors; concepts are numbered in their order."""
    tensors = {f"{n}.{name}": getattr(m, name).contiguous() for n, m in enumerate(moments.values()) for name in SUMS}
    counts = torch.tensor([m.count for m in moments.values()])
    write_tensors(path, {**tensors, "counts": counts})


def load_moments(path: Path, place: Place, concepts: Sequence[str]) -> dict[str, Moments]:
    """Read what `save_moments` wrote for these concepts."""
    tensors = load_file(path)
    counts = tensors.pop("counts").tolist()
    parts = [[tensors[f"{n}.{name}"] for name in SUMS] for n in range(len(counts))]
    return {c: Moments(place, n, *part) for c, n, part in zip(concepts, counts, parts, strict=True)}


def rest_of(concept: str, moments: Mapping[str, Moments]) -> Moments:
    """The complement: moments over the sequences of all other concepts, each sequence counted once.

    Raises:
        InputError: an unknown concept, or no other one.
    """
    if concept not in moments or len(moments) < 2:
        raise InputError(f"{concept!r} has no complement among {choices(moments)}; expected it and at least one other.")
    return reduce(add, (m for name, m in moments.items() if name != concept))
