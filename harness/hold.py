"""Holding neurons during training: the weights that write them do not change, exactly, and this is proven afterwards.

Held for site mlp_act, neuron (l, i): row i of the projections into the MLP (and biases), column i of the down
projection. For mlp_out: row i of the down projection (and its bias). InhibitFT, arXiv 2508.02360.

Full fine-tuning: gradients of held entries are zeroed, and after every optimizer step held entries are written back,
which undoes weight decay and momentum too. LoRA: the update B A of a held row is zero while that row of B is zero, of a
held column while that column of A is zero; both are kept so after every step. Dropout acts on A's input and breaks
neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import TrainerCallback

from harness.errors import InputError, ProofError
from harness.neurons import Neurons
from harness.shards import own_part, own_rows
from harness.sites import MLP, Projection, check_mlp_site, mlps

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class HeldEntries:
    """Held rows and columns of one projection (weights as [outputs, inputs])."""

    projection: Projection
    rows: Bool[Tensor, " o"]
    columns: Bool[Tensor, " i"]

    @property
    def mask(self) -> Bool[Tensor, "o i"]:
        return self.rows[:, None] | self.columns[None, :]

    def __len__(self) -> int:
        return int(self.mask.sum())


def held_entries(model: nn.Module, neurons: Neurons) -> list[HeldEntries]:
    """The entries of every MLP projection that write the neurons, layer by layer.

    Raises:
        InputError: no neurons to hold, neurons of another width or depth, or of a site without weights of its own.
    """
    if not len(neurons):
        raise InputError("The set of neurons to hold is empty, so holding it would be an ordinary fine-tune.")
    check_mlp_site(neurons.site, "Holding")
    layers = mlps(model)
    down = layers[0].down
    neurons.check_shape(down.inputs if neurons.site == "mlp_act" else down.outputs, len(layers))
    found = []
    for layer, mlp in enumerate(layers):
        found += [entries for entries in _of_layer(mlp, neurons.mask[layer], neurons.site) if len(entries)]
    return found


def _of_layer(mlp: MLP, chosen: Bool[Tensor, " n"], site: str) -> Iterator[HeldEntries]:
    down = mlp.down
    nothing_in = torch.zeros(down.inputs, dtype=torch.bool)
    if site == "mlp_out":
        yield HeldEntries(down, chosen, nothing_in)
        return
    for up in mlp.ups:
        yield HeldEntries(up, chosen.repeat(mlp.rows(up)), torch.zeros(up.inputs, dtype=torch.bool))
    yield HeldEntries(down, torch.zeros(down.outputs, dtype=torch.bool), chosen)


class Hold(TrainerCallback):
    """Keeps entries at the base's values while a trainer runs; `prove_held` compares the result with the base.

    It keeps a copy of the held entries alone, and writes gradients and weights in place.
    """

    def __init__(self, model: PreTrainedModel, neurons: Neurons) -> None:
        self.neurons = neurons
        self._base = [_Values.of(entries) for entries in held_entries(model, neurons)]
        self._held: list[_Held] = []
        self._hooks: list[Any] = []

    def attach(self, model: nn.Module) -> None:
        """Take hold of the model that is trained (the same one, or PEFT's wrapper around it).

        Raises:
            ProofError: a held projection is neither trained nor adapted, so holding it would say nothing.
        """
        # PEFT has put its own modules in the place of the base's.
        found = zip(held_entries(model, self.neurons), self._base, strict=True)
        self._held = [_Held.of(entries, values) for entries, values in found]
        parameters = {id(p) for p in model.parameters() if p.requires_grad}
        acting = False
        for held in self._held:
            stored, bias = _stored(held.projection), held.projection.bias
            if id(stored) in parameters:
                self._hooks.append(stored.register_post_accumulate_grad_hook(held.zero_gradient))
                if bias is not None and bias.requires_grad and len(held.outputs):
                    self._hooks.append(bias.register_post_accumulate_grad_hook(held.zero_bias_gradient))
                acting = True
            acting = acting or bool(_lora(held.projection))
        if not acting:
            raise ProofError("None of the held projections is trained, so the hold could not act; train the MLP too.")
        self.restore()

    def restore(self) -> None:
        """Write held entries back to the base's values (full), or their updates to zero (LoRA)."""
        for held in self._held:
            held.restore()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.restore()

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class _Indices(NamedTuple):
    """Held rows and columns of a projection's stored weight, and held entries of its bias.

    Of sharded weights (FSDP) a process has some rows; these are the indices within them.
    """

    rows: Tensor
    columns: Tensor
    bias: Tensor

    @classmethod
    def of(cls, entries: HeldEntries) -> _Indices:
        projection, outputs, inputs = entries.projection, entries.rows, entries.columns
        rows, columns = (inputs, outputs) if projection.transposed else (outputs, inputs)
        stored, bias = _stored(projection), projection.bias
        every = columns.nonzero()[:, 0].to(stored.device)
        return cls(own_rows(stored, rows), every, every[:0] if bias is None else own_rows(bias, outputs))


class _Values(NamedTuple):
    """The base's held entries of one projection, as far as this process has them: [r, *], [*, c] and [o] or None."""

    rows: Tensor
    columns: Tensor
    bias: Tensor | None

    @classmethod
    @torch.no_grad()
    def of(cls, entries: HeldEntries) -> _Values:
        where, bias = _Indices.of(entries), entries.projection.bias
        stored = own_part(_stored(entries.projection))
        return cls(stored[where.rows], stored[:, where.columns], None if bias is None else own_part(bias)[where.bias])


@dataclass(frozen=True)
class _Held:
    """One projection in training, what is held of it, and the values it is held at."""

    projection: Projection
    outputs: Tensor
    inputs: Tensor
    where: _Indices
    base: _Values

    @classmethod
    def of(cls, entries: HeldEntries, base: _Values) -> _Held:
        device = _stored(entries.projection).device
        outputs, inputs = (mask.nonzero()[:, 0].to(device) for mask in (entries.rows, entries.columns))
        return cls(entries.projection, outputs, inputs, _Indices.of(entries), base)

    @torch.no_grad()
    def zero_gradient(self, stored: Tensor) -> None:
        assert stored.grad is not None
        gradient = own_part(stored.grad)
        gradient[self.where.rows] = 0
        gradient[:, self.where.columns] = 0

    @torch.no_grad()
    def zero_bias_gradient(self, bias: Tensor) -> None:
        assert bias.grad is not None
        own_part(bias.grad)[self.where.bias] = 0

    @torch.no_grad()
    def restore(self) -> None:
        adapters = _lora(self.projection)
        for a, b in adapters:
            b[self.outputs] = 0
            a[:, self.inputs] = 0
        if not adapters:
            stored, bias = own_part(_stored(self.projection)), self.projection.bias
            stored[self.where.rows] = self.base.rows
            stored[:, self.where.columns] = self.base.columns
            if bias is not None and self.base.bias is not None:
                own_part(bias)[self.where.bias] = self.base.bias


def prove_held(base: PreTrainedModel, trained: PreTrainedModel, neurons: Neurons) -> dict[str, Any]:
    """Compare the EFFECTIVE weights (adapter merged) of a trained model with its base.

    Returns:
        held: entries that had to stay; moved: other entries of the same projections that changed; largest: their
        largest change.

    Raises:
        ProofError: a held entry differs, or nothing else moved (no training took place).
    """
    held = moved = 0
    largest = 0.0
    for before, after in zip(held_entries(base, neurons), held_entries(trained, neurons), strict=True):
        mask = before.mask
        old, new = before.projection.weight.detach(), after.projection.weight.detach()
        if not torch.equal(old[mask], new[mask]):
            worst = float((old[mask] - new[mask]).abs().max())
            raise ProofError(f"Held entries of {before.projection.name} moved by up to {worst:.3g}; the hold failed.")
        pairs = (before.projection.bias, after.projection.bias)
        if (
            pairs[0] is not None
            and pairs[1] is not None
            and not torch.equal(pairs[0][before.rows], pairs[1][before.rows])
        ):
            raise ProofError(f"Held biases of {before.projection.name} moved; the hold failed.")
        change = (old[~mask].float() - new[~mask].float()).abs()
        held += int(mask.sum())
        moved += int((change > 0).sum())
        largest = max(largest, float(change.max()) if change.numel() else 0.0)
    moved_elsewhere = moved or _any_other_change(base, trained)
    if not moved_elsewhere:
        raise ProofError("No weight moved in training, so nothing was held against anything; raise the learning rate.")
    return {"held_entries": held, "moved_beside_them": moved, "largest_move": largest, "held_largest_move": 0.0}


def _any_other_change(base: nn.Module, trained: nn.Module) -> bool:
    theirs = dict(trained.named_parameters())
    return any(name in theirs and not torch.equal(p, theirs[name]) for name, p in base.named_parameters())


def _stored(projection: Projection) -> Tensor:
    from harness.sites import base_layer

    return base_layer(projection.module).weight  # type: ignore[return-value]


def _lora(projection: Projection) -> list[tuple[Tensor, Tensor]]:
    """(A [r, inputs], B [outputs, r]) of every LoRA adapter on the projection."""
    lora_a, lora_b = getattr(projection.module, "lora_A", None), getattr(projection.module, "lora_B", None)
    if not isinstance(lora_a, nn.ModuleDict) or not isinstance(lora_b, nn.ModuleDict):
        return []
    return [(lora_a[name].weight, lora_b[name].weight) for name in lora_a]  # type: ignore[misc]
