"""Suppressing and enhancing gate, q, k and v neurons: hooks on a Torch model, and the same written into its weights.

A neuron here is one output of a projection. Multiplying it by c at every position is multiplying its row of the weight, and
its bias, by c; norms and rotary embeddings come later, so this is exact in every architecture, for c = 0 (suppress) and a
power of two (CULNIG enhances by 2, arXiv 2510.08284) to the last bit of any floating-point format. The baked folder is an
ordinary checkpoint, which any engine serves by swap.

Does nothing where the neurons' outputs are zero already, which raises. Doubling every neuron of a head changes little where
a norm follows the projection (Qwen 3, Gemma 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from harness.errors import InputError, ProofError
from harness.interventions import Effect
from harness.models import lineage, load_model, weights_hash
from harness.projections import Part, projection_parts
from harness.runs import digest
from harness.sites import Projection
from harness.weights_cache import made_once
from plugins.culnig import Masks
from plugins.culnig_sets import members, size

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def outputs(part: Part, mask: Bool[Tensor, " n"], width: int) -> Int[Tensor, " o"]:
    """Which of a module's `width` outputs are the chosen neurons of a site."""
    chosen, each, group = mask.nonzero().flatten(), part.stop - part.start, width // part.groups
    return chosen // each * group + part.start + chosen % each


def _chosen(model: PreTrainedModel, masks: Masks) -> list[tuple[Projection, Tensor]]:
    """Every projection with the outputs that are scaled.

    Raises:
        InputError: no site, a site the model lacks, or masks of another shape.
    """
    layers = projection_parts(model, list(masks))
    found = []
    for site, mask in masks.items():
        expected = (len(layers), layers[0][site].width)
        if tuple(mask.shape) != expected:
            raise InputError(
                f"The neurons at {site} are of {mask.shape[0]} layers x {mask.shape[1]}; {type(model).__name__} has "
                f"{expected[0]} x {expected[1]}. They come from another model."
            )
        for layer, row in zip(layers, mask.cpu(), strict=True):
            if bool(row.any()):
                projection = Projection(site, layer[site].module)
                found.append((projection, outputs(layer[site], row, projection.outputs)))
    return found


@contextmanager
def scaling(model: PreTrainedModel, masks: Masks, factor: float) -> Iterator[Effect]:
    """Multiply the neurons' outputs by `factor` at every position of every forward pass inside the block.

    Raises:
        InputError: masks that do not fit the model.
        ProofError: forward passes ran and no output changed although the set is not empty and the factor is not 1.
    """
    effect = Effect()

    def after(index: Tensor, _module: Any, _args: Any, output: Tensor) -> Tensor:
        changed, at = output.clone(), index.to(output.device)
        changed[..., at] = output[..., at] * factor
        effect.note(output[..., at], changed[..., at])
        return changed

    with ExitStack() as stack:
        for projection, index in _chosen(model, masks):
            stack.callback(projection.module.register_forward_hook(partial(after, index)).remove)
        yield effect
    if effect.values and not effect.largest and factor != 1:
        raise ProofError(
            f"Scaling {size(masks)} neurons by {factor:g} visited {effect.values} outputs and changed none."
        )


@torch.no_grad()
def bake(model: PreTrainedModel, masks: Masks, factor: float) -> dict[str, float]:
    """Multiply the weight rows and biases that write the neurons by `factor`, in place; returns what was changed.

    Raises:
        InputError: masks that do not fit the model.
        ProofError: no weight changed although the factor is not 1.
    """
    changed = 0
    for projection, index in _chosen(model, masks):
        for stored in (projection.weight, projection.bias):
            if stored is not None:
                new = stored[index] * factor
                changed += int((new != stored[index]).sum())
                stored[index] = new
    if not changed and factor != 1:
        raise ProofError(
            f"Scaling {size(masks)} neurons by {factor:g} changed no weight; the set is empty or its weights are zero."
        )
    return {"neurons": size(masks), "changed_weights": changed, "factor": factor}


def baked(folder: str, masks: Masks, factor: float) -> str:
    """The folder of a checkpoint with the neurons scaled for good; made on first use and kept in the cache.

    Raises:
        InputError: masks that do not fit the model.
        ProofError: no weight changed.
    """
    key = {"model": weights_hash(folder), "projections": digest(members(masks)), "factor": factor}

    def make() -> tuple[Any, dict[str, Any]]:
        model = load_model(folder)
        return model, bake(model, masks, factor)

    return made_once(key, folder, lineage(folder), make)
