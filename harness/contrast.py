"""Contrasting the activations of two models on the same tokens: running sums per neuron, kept apart by group of sequences.

Sequences of all groups share batches. Memory does not grow with the number of sequences. A fine-tune that is an adapter needs
one model in memory: loaded into it by transformers' `load_adapter`, given as both `base` and `tuned`, and switched off for
the base's pass.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
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

    @classmethod
    def empty(cls, layers: int, site_width: int, device: torch.device) -> Contrast:
        zeros = torch.zeros(4, layers, site_width, dtype=torch.float64, device=device)
        return cls(zeros[0], zeros[1], zeros[2], zeros[3])

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
    found = {key: Contrast.empty(*shape, device) for key in groups}
    flat = [(key, sequence) for key, sequences in groups.items() for sequence in sequences]
    end = base.config.eos_token_id
    pad_id = int(end[0] if isinstance(end, list) else end or 0)
    for batch in batches([sequence.ids for _, sequence in flat], batch_tokens):
        rows = [flat[n] for n in sorted(batch)]  # a group's rows stand together, and so do its selected tokens
        ids, mask = pad([sequence.ids for _, sequence in rows], pad_id, device)
        starts = torch.tensor([sequence.start for _, sequence in rows], device=device)
        chosen = mask & (torch.arange(ids.shape[1], device=device) >= starts[:, None])
        parts: list[tuple[Contrast, slice]] = []
        for key, own in groupby(zip(rows, chosen.sum(1).tolist(), strict=True), key=lambda row: row[0][0]):
            begin = parts[-1][1].stop if parts else 0
            parts.append((found[key], slice(begin, begin + sum(count for _, count in own))))
        _add(base, tuned, ids, mask, chosen, parts, site)
        advance(len(batch))
    return found


def _add(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    ids: Int[Tensor, "b s"],
    mask: Bool[Tensor, "b s"],
    chosen: Bool[Tensor, "b s"],
    parts: list[tuple[Contrast, slice]],
    site: SiteName,
) -> None:
    """Run both models over one batch; `parts` are the groups' slices of its selected tokens, in their order."""
    seen: dict[int, Tensor] = {}

    def of_base(layer: int, activation: Tensor) -> None:
        seen[layer] = a = _wide(activation[chosen])
        for sums, part in parts:
            sums.base_sum[layer] += a[part].sum(0)
            sums.base_squared[layer] += _squares(a[part])
            sums.base_absolute[layer] += torch.linalg.vector_norm(a[part], 1, dim=0)

    def of_tuned(layer: int, activation: Tensor) -> None:
        difference = _wide(activation[chosen]) - seen.pop(layer)
        for sums, part in parts:
            sums.squared_difference[layer] += _squares(difference[part])

    with visiting(base, site, of_base), _adapter_off(base) if base is tuned else nullcontext():
        forward(base, ids, mask)
    with visiting(tuned, site, of_tuned):
        forward(tuned, ids, mask)
    for sums, part in parts:
        sums.tokens += part.stop - part.start


@contextmanager
def _adapter_off(model: PreTrainedModel) -> Iterator[None]:
    if not getattr(model, "_hf_peft_config_loaded", False):
        raise InputError("Base and tuned are one model without an adapter; PNLAC contrasts a model with its fine-tune.")
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def _wide(a: Float[Tensor, "c n"]) -> Float[Tensor, "c n"]:
    """At least float32: batches are summed in it, and summed up in float64."""
    return a.to(torch.promote_types(a.dtype, torch.float32))


def _squares(a: Float[Tensor, "c n"]) -> Float[Tensor, " n"]:
    """Sum of squares over tokens, without a second tensor of a's size."""
    return torch.linalg.vector_norm(a, dim=0).square()
