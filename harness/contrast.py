"""Contrasting the activations of two models on the same tokens: running sums per neuron, kept apart by group of sequences.

Sequences of all groups share batches. Memory does not grow with the number of sequences. A fine-tune that is an adapter needs
one model in memory: loaded into it by transformers' `load_adapter`, given as both `base` and `tuned`, and switched off for
the base's pass.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from harness.activations import batches, forward, pad, visiting
from harness.errors import InputError
from harness.sites import SiteName, mlps, width

if TYPE_CHECKING:
    from transformers import PreTrainedModel

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Sequence:
    """Token ids of one prompt (and completion); scores count the positions from `start` on."""

    ids: list[int]
    start: int = 0


@dataclass
class Contrast:
    """Running sums over tokens of one topic, all [l, n] float64 on the models' device."""

    squared_difference: Float[Tensor, "l n"]
    base_sum: Float[Tensor, "l n"]
    base_squared: Float[Tensor, "l n"]
    base_absolute: Float[Tensor, "l n"]
    tokens: int = 0

    def __add__(self, other: Contrast) -> Contrast:
        """Sums over the tokens of both."""
        return Contrast(
            self.squared_difference + other.squared_difference,
            self.base_sum + other.base_sum,
            self.base_squared + other.base_squared,
            self.base_absolute + other.base_absolute,
            self.tokens + other.tokens,
        )

    @property
    def score(self) -> Float[Tensor, "l n"]:
        """R_t: root mean squared difference, in activation units."""
        return (self.squared_difference / self.tokens).sqrt()

    @property
    def normalized(self) -> Float[Tensor, "l n"]:
        """R_t in units of the base's standard deviation; 0 where the base never varies."""
        mean_square = self.base_squared / self.tokens
        variance = mean_square - (self.base_sum / self.tokens) ** 2
        varies = variance > 1e-12 * mean_square  # below this the difference of the two sums is rounding
        return torch.where(varies, self.score / variance.clamp(min=0).sqrt(), 0.0)

    @property
    def size(self) -> Float[Tensor, "l n"]:
        """Mean |activation| of the base."""
        return self.base_absolute / self.tokens


def contrast(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    sequences: list[Sequence],
    site: SiteName,
    batch_tokens: int = 2048,
    advance: Callable[[int], object] = lambda _: None,
) -> Contrast:
    """The running sums of one list of sequences; see `contrasts`."""
    return contrasts(base, tuned, {None: sequences}, site, batch_tokens, advance)[None]


def contrasts(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    groups: Mapping[K, list[Sequence]],
    site: SiteName,
    batch_tokens: int = 2048,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[K, Contrast]:
    """One streaming pass of both models over the same token ids of all groups, whose sequences share batches.

    One model given twice is its own base with its adapter switched off. `advance(n)` is told of n finished sequences.

    Raises:
        InputError: a group without selected tokens, or models of different shapes.
    """
    shape = (len(mlps(base)), width(base, site))
    if shape != (len(mlps(tuned)), width(tuned, site)):
        raise InputError(
            "The two models have different layers or widths; PNLAC contrasts a model with its own fine-tune."
        )
    if not all(any(s.start < len(s.ids) for s in sequences) for sequences in groups.values()):
        raise InputError("No tokens to contrast: with --tokens completion the prompts need completions.")
    device = next(base.parameters()).device
    keys, device = list(groups), next(base.parameters()).device
    sums = Sums.empty(len(keys), *shape, device)
    flat = [(number, s) for number, key in enumerate(keys) for s in groups[key]]
    end = base.config.eos_token_id
    pad_id = int(end[0] if isinstance(end, list) else end or 0)
    for batch in batches([sequence.ids for _, sequence in flat], batch_tokens):
        numbers = torch.tensor([flat[n][0] for n in batch], device=device)
        starts = torch.tensor([flat[n][1].start for n in batch], device=device)
        ids, mask = pad([flat[n][1].ids for n in batch], pad_id, device)
        chosen = mask & (torch.arange(ids.shape[1], device=device) >= starts[:, None])
        of_group = torch.arange(len(keys), device=device)[:, None, None] == numbers[:, None]
        sums.add(base, tuned, ids, (of_group & chosen).flatten(1), site)
        advance(len(batch))
    return {key: sums.of(number) for number, key in enumerate(keys)}


@dataclass
class Sums:
    """The four running sums of every group, [g, l, n] float64, and the groups' tokens [g]."""

    sums: Float[Tensor, "4 g l n"]
    tokens: Int[Tensor, " g"]

    @classmethod
    def empty(cls, groups: int, layers: int, site_width: int, device: torch.device) -> Sums:
        zeros = torch.zeros(4, groups, layers, site_width, dtype=torch.float64, device=device)
        return cls(zeros, torch.zeros(groups, dtype=torch.long, device=device))

    def of(self, group: int) -> Contrast:
        squared_difference, total, squared, absolute = self.sums[:, group]
        return Contrast(squared_difference, total, squared, absolute, int(self.tokens[group]))

    def add(
        self,
        base: PreTrainedModel,
        tuned: PreTrainedModel,
        ids: Int[Tensor, "b s"],
        chosen: Bool[Tensor, "g c"],
        site: SiteName,
    ) -> None:
        """Run both models over one batch. `chosen`: which of its b * s positions count for which group.

        A sum over positions is a matrix product with `chosen`: one reading of the activations serves all groups.
        """
        seen: dict[int, Tensor] = {}
        weights: dict[torch.dtype, Tensor] = {}

        def count(which: int, layer: int, a: Float[Tensor, "c n"]) -> None:
            weight = weights.setdefault(a.dtype, chosen.to(a.dtype))
            self.sums[which, :, layer] += weight @ a

        def of_base(layer: int, activation: Tensor) -> None:
            seen[layer] = activation
            a = _wide(activation)
            count(1, layer, a)
            count(2, layer, a.square())
            count(3, layer, a.abs())

        def of_tuned(layer: int, activation: Tensor) -> None:
            count(0, layer, (_wide(activation) - _wide(seen.pop(layer))).square_())

        with visiting(base, site, of_base), _adapter_off(base) if base is tuned else nullcontext():
            forward(base, ids)
        with visiting(tuned, site, of_tuned):
            forward(tuned, ids)
        self.tokens += chosen.sum(1)


@contextmanager
def _adapter_off(model: PreTrainedModel) -> Iterator[None]:
    if not getattr(model, "_hf_peft_config_loaded", False):
        raise InputError("Base and tuned are one model without an adapter; PNLAC contrasts a model with its fine-tune.")
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def _wide(activation: Float[Tensor, "b s n"]) -> Float[Tensor, "c n"]:
    """All positions, at least in float32: batches are summed in it, and summed up in float64."""
    flat = activation.flatten(0, 1)
    return flat.to(torch.promote_types(flat.dtype, torch.float32))
