"""A residual patch as an ordinary checkpoint: the donor's embeddings and blocks 0..l under the recipient's rest.

Patching resid_post after block l at all positions is this very model (arXiv 2510.12229), so vLLM can sample from it, at
the speed of any model. Sub-block sites have no such checkpoint.

The input embeddings come from the donor and the head from the recipient. Where a model ties the two and the embeddings
differ, they are untied in the written config; such a folder has another shape than its parents, so an engine that serves
them is started again for it, once for all stitched folders.

Does nothing new where donor and recipient agree on all that is taken over: that is refused.

    folder = stitched("base", "tuned", layer=14)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from harness.errors import ProofError
from harness.models import lineage, load_model, resolve, weights_hash
from harness.sites import decoder_layers
from harness.weights_cache import made_once
from plugins.layer_patching_hooks import check_layers, check_pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def stitch(donor: PreTrainedModel, recipient: PreTrainedModel, layer: int) -> dict[str, int]:
    """Write the donor's embeddings and blocks 0..layer into the recipient, in place.

    Returns:
        weights: entries taken over; changed: those that differed; untied: 1 where head and embeddings were untied.

    Raises:
        InputError: models that do not fit each other, or no such block.
        ProofError: nothing differed.
    """
    check_pair(donor, recipient)
    check_layers(recipient, [layer])
    untied = _untie(donor, recipient)
    ours = dict(_embeddings(recipient))
    parts = [(module, ours[name]) for name, module in _embeddings(donor)]
    blocks = zip(decoder_layers(donor), decoder_layers(recipient), strict=True)
    weights = changed = 0
    for theirs, mine in [*parts, *list(blocks)[: layer + 1]]:
        for given, own in zip(_tensors(theirs), _tensors(mine), strict=True):
            new = given.to(own.dtype)
            weights += own.numel()
            changed += int((new != own).sum())
            own.copy_(new)
    if not changed:
        raise ProofError(
            f"Donor and recipient agree on all {weights} weights up to block {layer}; is the donor the recipient itself?"
        )
    return {"weights": weights, "changed": changed, "untied": int(untied)}


def stitched(donor: str, recipient: str, layer: int) -> str:
    """The folder of the stitched model, made on first use and kept in the cache.

    Raises:
        InputError, ProofError: as `stitch`.
    """
    given, own = resolve(donor), resolve(recipient)
    key = {"donor": weights_hash(given), "recipient": weights_hash(own), "stitched_after": layer}

    def make() -> tuple[Any, dict[str, int]]:
        model: Any = load_model(own)
        return model, stitch(load_model(given), model, layer)

    return made_once(key, own, list(dict.fromkeys([*lineage(own), *lineage(given)])), make)


def _embeddings(model: PreTrainedModel) -> list[tuple[str, nn.Embedding]]:
    """Embeddings outside the blocks, of tokens and of positions."""
    inner = {id(module) for module in decoder_layers(model).modules()}
    return [
        (name, module)
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.Embedding) and id(module) not in inner
    ]


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _untie(donor: PreTrainedModel, recipient: PreTrainedModel) -> bool:
    """Give the recipient a head of its own where it shares one with embeddings that are about to change."""
    head, tokens = recipient.get_output_embeddings(), recipient.get_input_embeddings()
    theirs = donor.get_input_embeddings()
    assert isinstance(tokens, nn.Embedding) and isinstance(theirs, nn.Embedding)
    if head is None or head.weight is not tokens.weight or torch.equal(tokens.weight, theirs.weight.to(tokens.weight)):
        return False
    head.weight = nn.Parameter(tokens.weight.detach().clone())
    for config in {id(c): c for c in (recipient.config, recipient.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    return True
