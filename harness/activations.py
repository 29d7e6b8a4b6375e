"""Reading and replacing activations at a site: the hooks every method shares.

One forward pass over prompts, reduced to running sums per neuron; memory does not grow with the number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from harness.sites import SiteName, decoder_layers, mlps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Visit = Callable[[int, Tensor], Tensor | None]


@contextmanager
def visiting(model: PreTrainedModel, site: SiteName, visit: Visit) -> Iterator[None]:
    """Call `visit(layer, activation [b, s, n])` at every layer's site during forward passes inside the block.

    What `visit` returns replaces the activation; None leaves it. The hooks are removed on leaving, whatever happens.
    """

    def before(_module: Any, args: tuple[Any, ...], layer: int) -> tuple[Any, ...] | None:
        new = visit(layer, args[0])
        return None if new is None else (new, *args[1:])

    def after(_module: Any, _args: Any, output: Any, layer: int) -> Any:
        alone = isinstance(output, Tensor)
        new = visit(layer, output if alone else output[0])
        return new if new is None or alone else (new, *output[1:])

    handles = []
    for layer, (block, mlp) in enumerate(zip(decoder_layers(model), mlps(model), strict=True)):
        if site == "mlp_act":
            handles.append(mlp.down.module.register_forward_pre_hook(partial(before, layer=layer)))
        else:
            module = mlp.down.module if site == "mlp_out" else block
            handles.append(module.register_forward_hook(partial(after, layer=layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def batches(sequences: list[list[int]], tokens: int = 2048) -> Iterator[list[int]]:
    """Indices of sequences grouped by length so that a padded batch holds at most `tokens` positions."""
    order = sorted(range(len(sequences)), key=lambda n: len(sequences[n]))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(sequences[index]) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad(
    sequences: list[list[int]], pad_id: int, device: str | torch.device = "cpu", left: bool = False
) -> tuple[Int[Tensor, "b s"], Bool[Tensor, "b s"]]:
    """Token ids and mask of real positions, padded on the right (or left)."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), longest), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        where = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        ids[row, where] = torch.tensor(sequence, dtype=torch.long)
        mask[row, where] = True
    return ids.to(device), mask.to(device)


def position_ids(mask: Bool[Tensor, "b s"]) -> Int[Tensor, "b s"]:
    """Positions counted over real tokens, so that left padding changes nothing."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def forward(model: PreTrainedModel, ids: Int[Tensor, "b s"]) -> None:
    """The decoder stack without the vocabulary head, on ids padded on the right.

    No mask is needed: causal attention sees pads on the right from no real position.
    """
    model.base_model(input_ids=ids, use_cache=False)
