"""The running sums behind a contrast: both models over one batch, reduced to sums per group and neuron."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from harness.activations import forward, visiting
from harness.errors import InputError
from harness.sites import SiteName

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Sums:
    """The running sums of every group, float64, the groups' tokens, and the base's activations of the batch at hand."""

    sums: Float[Tensor, "q g l n"]
    tokens: Int[Tensor, " g"]
    seen: Float[Tensor, "l c n"]

    @classmethod
    def empty(cls, quantities: int, groups: int, layers: int, site_width: int, device: torch.device) -> Sums:
        zeros = torch.zeros(quantities, groups, layers, site_width, dtype=torch.float64, device=device)
        tokens = torch.zeros(groups, dtype=torch.long, device=device)
        return cls(zeros, tokens, torch.empty(layers, 0, site_width, device=device))

    def merge(self, other: Sums) -> None:
        """Add what another device summed."""
        self.sums += other.sums.to(self.sums.device)
        self.tokens += other.tokens.to(self.tokens.device)

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
        weights: dict[torch.dtype, Tensor] = {}

        def count(which: int, layer: int, rows: slice, a: Float[Tensor, "c n"]) -> None:
            weight = weights.setdefault(a.dtype, chosen.to(a.dtype))
            self.sums[which, :, layer] += weight[:, rows] @ a

        def of_base(layer: int, activation: Tensor) -> None:
            flat = activation.flatten(0, 1)
            self._keep(layer, flat)
            for rows in _pieces(flat):
                a = _wide(flat[rows])
                count(1, layer, rows, a.abs())
                if len(self.sums) == 4:
                    count(2, layer, rows, a)
                    count(3, layer, rows, a.square())

        def of_tuned(layer: int, activation: Tensor) -> None:
            flat = activation.flatten(0, 1)
            for rows in _pieces(flat):
                count(0, layer, rows, (_wide(flat[rows]) - _wide(self.seen[layer, rows])).square_())

        with visiting(base, site, of_base), _adapter_off(base) if base is tuned else nullcontext():
            forward(base, ids)
        with visiting(tuned, site, of_tuned):
            forward(tuned, ids)
        self.tokens += chosen.sum(1)

    def _keep(self, layer: int, flat: Float[Tensor, "c n"]) -> None:
        """Into memory that all batches share: new memory for every batch costs more than this copy."""
        if len(flat) > self.seen.shape[1] or flat.dtype != self.seen.dtype:
            self.seen = flat.new_empty(len(self.seen), *flat.shape)
        self.seen[layer, : len(flat)] = flat


@contextmanager
def _adapter_off(model: PreTrainedModel) -> Iterator[None]:
    if not getattr(model, "_hf_peft_config_loaded", False):
        raise InputError("Base and tuned are one model without an adapter; PNLAC contrasts a model with its fine-tune.")
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def _pieces(flat: Float[Tensor, "c n"]) -> Iterator[slice]:
    """Positions by so many that on a CPU their float32 copies stay in its cache."""
    step = 128 if flat.device.type == "cpu" else len(flat)
    return (slice(first, min(first + step, len(flat))) for first in range(0, len(flat), step))


def _wide(piece: Float[Tensor, "c n"]) -> Float[Tensor, "c n"]:
    """At least in float32: pieces are summed in it, and summed up in float64."""
    return piece.to(torch.promote_types(piece.dtype, torch.float32))
