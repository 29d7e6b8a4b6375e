"""Layer-Patching on a Torch model: a donor's activations at one site of one block, at all positions (arXiv 2510.12229).

| site | tensor that is replaced |
| --- | --- |
| resid_post | residual stream after the block, before any final norm |
| attn_out | output of the attention module, with its output projection |
| mlp_out | output of the MLP's down projection |

Where a norm follows the attention or the MLP before the residual is added (Gemma 2 and 3), attn_out and mlp_out are the
tensors before that norm, and the recipient's own norm reads the donor's activations.

A patch after block l leaves everything before it as it was, so the blocks below are not computed again: they are passed
over, and the forward pass begins where the patch acts. Identities: resid_post after block l is the model that is
stitched of the donor's embeddings and blocks 0..l and the recipient's rest (layer_patching_stitch.py); of several
resid_post patches only the last counts; the recipient's own activations change nothing; after the last block the answer
is the recipient's final norm and head on the donor's stream, which is the donor's answer where these two are equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from harness.errors import InputError, choices
from harness.sites import decoder_layers, mlps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PatchSite = Literal["resid_post", "attn_out", "mlp_out"]
PATCH_SITES: tuple[PatchSite, ...] = get_args(PatchSite)


@dataclass
class Trace:
    """What one forward pass left: logits of the last positions, and activations of the layers that were asked for.

    Attributes:
        logits: [b, s, v], s the positions that were kept.
        entering: block -> residual stream before it, [b, s, d].
        at: (site, block) -> activation, [b, s, d].
        alone: whether blocks return a tensor, and not a tuple that begins with one.
    """

    logits: Float[Tensor, "b k v"]
    entering: dict[int, Tensor] = field(default_factory=dict)
    at: dict[tuple[PatchSite, int], Tensor] = field(default_factory=dict)
    alone: bool = True


def check_layers(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Refuse blocks that the model does not have.

    Raises:
        InputError: a layer outside 0 .. blocks - 1.
    """
    blocks = len(decoder_layers(model))
    if beyond := [layer for layer in layers if not 0 <= layer < blocks]:
        raise InputError(f"Layers {choices(beyond)} do not exist; the model has blocks 0 to {blocks - 1}.")


def check_pair(base: PreTrainedModel, tuned: PreTrainedModel) -> None:
    """Refuse two models whose activations do not fit each other.

    Raises:
        InputError: models of another architecture, depth or hidden size.
    """
    shapes = [
        (type(model).__name__, len(decoder_layers(model)), int(model.config.get_text_config().hidden_size))
        for model in (base, tuned)
    ]
    if shapes[0] != shapes[1]:
        said = [f"{name} with {blocks} blocks of width {wide}" for name, blocks, wide in shapes]
        raise InputError(f"Cannot patch between {said[0]} and {said[1]}; expected a model and its fine-tune.")


def module_at(model: PreTrainedModel, site: PatchSite, layer: int) -> nn.Module:
    """The module whose output is the site's tensor.

    Raises:
        InputError: a block whose attention module cannot be told.
    """
    block = decoder_layers(model)[layer]
    if site == "resid_post":
        return block
    if site == "mlp_out":
        return mlps(model)[layer].down.module
    found = [
        child
        for name, child in block.named_children()
        if ("attn" in name or "attention" in name) and "norm" not in name and any(True for _ in child.parameters())
    ]
    if len(found) != 1:
        raise InputError(f"Block {layer} of {type(model).__name__} has {len(found)} attention modules; expected one.")
    return found[0]


@torch.no_grad()
def record(
    model: PreTrainedModel, inputs: Mapping[str, Any], sites: Sequence[PatchSite], layers: Sequence[int], keep: int = 1
) -> Trace:
    """Run the model and keep activations. `keep`: how many last positions get logits.

    Raises:
        InputError: as `check_layers` and `module_at`.
    """
    check_layers(model, layers)
    trace = Trace(torch.empty(0, 0, 0))

    def entering(_module: Any, args: tuple[Any, ...], named: dict[str, Any], layer: int) -> None:
        trace.entering[layer] = (args[0] if args else named["hidden_states"]).detach()

    def leaving(_module: Any, _args: Any, output: Any, key: tuple[PatchSite, int]) -> None:
        trace.at[key] = (output if isinstance(output, Tensor) else output[0]).detach()

    def form(_module: Any, _args: Any, output: Any) -> None:
        trace.alone = isinstance(output, Tensor)

    blocks = decoder_layers(model)
    with ExitStack() as stack:
        stack.callback(blocks[0].register_forward_hook(form).remove)
        for layer in layers:
            hook = blocks[layer].register_forward_pre_hook(partial(entering, layer=layer), with_kwargs=True)
            stack.callback(hook.remove)
            for site in sites:
                module = module_at(model, site, layer)
                stack.callback(module.register_forward_hook(partial(leaving, key=(site, layer))).remove)
        trace.logits = model(**inputs, use_cache=False, logits_to_keep=keep).logits
    return trace


@contextmanager
def replacing(model: PreTrainedModel, site: PatchSite, donated: Mapping[int, Float[Tensor, "b s d"]]) -> Iterator[None]:
    """Inside the block, forward passes give the donated activations at the site of each block named."""

    def after(_module: Any, _args: Any, output: Any, new: Tensor) -> Any:
        return new.to(output.dtype) if isinstance(output, Tensor) else (new.to(output[0].dtype), *output[1:])

    with ExitStack() as stack:
        for layer, new in donated.items():
            module = module_at(model, site, layer)
            stack.callback(module.register_forward_hook(partial(after, new=new)).remove)
        yield


@contextmanager
def passing_over(
    model: PreTrainedModel, blocks: int, stream: Float[Tensor, "b s d"], alone: bool = True
) -> Iterator[None]:
    """Inside the block, the first blocks are not computed: each of them gives `stream`. `alone`: see `Trace`."""

    def stand_in(*_args: Any, **_named: Any) -> Any:
        return stream if alone else (stream,)

    passed = list(decoder_layers(model))[:blocks]
    before = [vars(block).get("forward") for block in passed]
    try:
        for block in passed:
            block.forward = stand_in
        yield
    finally:
        for block, own in zip(passed, before, strict=True):
            if own is None:
                del block.forward
            else:
                block.forward = own


@torch.no_grad()
def resume(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    trace: Trace,
    site: PatchSite,
    layer: int,
    donated: Float[Tensor, "b s d"],
    keep: int = 1,
) -> Float[Tensor, "b k v"]:
    """Logits of the model's last positions under a patch at one site of one block.

    Args:
        trace: the model's own, unpatched, on the same inputs, with this layer recorded.
        donated: what stands at the site instead of the model's own activation.
    """
    own = trace.at[site, layer]
    if donated.shape != own.shape:
        raise ValueError(f"Donated activations have shape {tuple(donated.shape)}; the model's are {tuple(own.shape)}.")
    if site == "resid_post":
        with passing_over(model, layer + 1, donated.to(own.dtype), trace.alone):
            return model(**inputs, use_cache=False, logits_to_keep=keep).logits
    with passing_over(model, layer, trace.entering[layer], trace.alone), replacing(model, site, {layer: donated}):
        return model(**inputs, use_cache=False, logits_to_keep=keep).logits
