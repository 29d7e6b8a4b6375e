"""Where neurons live in a decoder, found by structure: one place for all architectures.

| site | tensor | width | weights that write neuron i |
| --- | --- | --- | --- |
| mlp_act | input of the MLP's down projection | m (intermediate) | row i of gate and up (and biases), column i of down |
| mlp_out | output of the MLP's down projection | d (hidden) | row i of down (and its bias) |
| resid_post | residual stream after the block, before any final norm | d (hidden) | every block before it |

Where a norm follows the MLP before the residual is added (Gemma 2 and 3), `mlp_out` is the tensor before that norm.
Fused gate-and-up projections (Phi-3) hold two rows per neuron; GPT-2's Conv1D weights lie transposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from harness.errors import InputError, choices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SiteName = Literal["mlp_act", "mlp_out", "resid_post"]
MLPSite = Literal["mlp_act", "mlp_out"]
SITES: tuple[SiteName, ...] = get_args(SiteName)
MLP_SITES: tuple[MLPSite, ...] = get_args(MLPSite)


@dataclass(frozen=True)
class Projection:
    """A linear map with one convention for its weight: [outputs, inputs], whatever the module stores."""

    name: str
    module: nn.Module

    @property
    def transposed(self) -> bool:
        """True for Conv1D, which stores [inputs, outputs]."""
        return isinstance(base_layer(self.module), Conv1D)

    @property
    def weight(self) -> Tensor:
        """A view [outputs, inputs] of the stored weight; writing to it writes to the model."""
        stored = base_layer(self.module).weight
        assert isinstance(stored, Tensor)
        return stored.T if self.transposed else stored

    @property
    def bias(self) -> Tensor | None:
        """[outputs] or None."""
        bias = base_layer(self.module).bias
        return bias if isinstance(bias, Tensor) else None

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True)
class MLP:
    """The projections of one layer's MLP: `ups` write the intermediate neurons, `down` reads them."""

    ups: tuple[Projection, ...]
    down: Projection

    def rows(self, up: Projection) -> int:
        """Rows of `up` per neuron: 2 where gate and up are fused."""
        return up.outputs // self.down.inputs


def base_layer(module: nn.Module) -> nn.Module:
    """The module itself, or the one PEFT wrapped."""
    inner = getattr(module, "base_layer", None)
    return inner if isinstance(inner, nn.Module) else module


def check_site(site: str) -> SiteName:
    """The site's name, or an error that lists the sites.

    Raises:
        InputError: unknown site.
    """
    for known in SITES:
        if site == known:
            return known
    raise InputError(f"There is no site {site!r}; sites: {choices(SITES)}.")


def check_mlp_site(site: str, doing: str) -> MLPSite:
    """The site's name if single weights write its neurons. `doing`: what needs that, for the error.

    Raises:
        InputError: the residual stream, which every block before it writes.
    """
    for known in MLP_SITES:
        if site == known:
            return known
    raise InputError(
        f"{doing} needs neurons that weights of their own write; {site} has none: use {choices(MLP_SITES)}."
    )


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of decoder blocks: the one whose blocks hold both an attention and an MLP.

    Raises:
        InputError: no such list, or more than one (encoder-decoders).
    """
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) and _attention(module[0]) and _mlp_block(module[0])
    ]
    if len(found) != 1:
        raise InputError(
            f"{type(model).__name__} has {len(found)} lists of blocks with attention and MLP; a decoder has one."
        )
    return found[0]


def _attention(block: nn.Module) -> bool:
    return any("attn" in name or "attention" in name for name, _ in block.named_children())


def _mlp_block(block: nn.Module) -> nn.Module | None:
    for name, child in block.named_children():
        if name in ("mlp", "feed_forward", "ffn"):
            return child
    return None


def mlps(model: nn.Module) -> list[MLP]:
    """The MLP of every layer, in order.

    Raises:
        InputError: a mixture of experts or a block whose down projection cannot be told.
    """
    hidden = _hidden_size(model)
    return [_mlp(number, block, hidden) for number, block in enumerate(decoder_layers(model))]


def _hidden_size(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    size = getattr(text, "hidden_size", None)
    if not isinstance(size, int):
        raise InputError(f"{type(model).__name__} does not say its hidden size in its config.")
    return size


def _projections(block: nn.Module) -> Iterator[Projection]:
    for name, module in block.named_modules():
        wrapped = name.endswith((".base_layer",)) or ".lora_" in name
        if not wrapped and isinstance(base_layer(module), (nn.Linear, Conv1D)):
            yield Projection(name, module)


def _mlp(number: int, block: nn.Module, hidden: int) -> MLP:
    inner = _mlp_block(block)
    assert inner is not None
    projections = list(_projections(inner))
    experts = any(isinstance(m, nn.ModuleList) for m in inner.modules()) or any(p.dim() > 2 for p in inner.parameters())
    if experts or len(projections) < 2:
        raise InputError(
            f"Layer {number} is a mixture of experts or unknown MLP ({type(inner).__name__}); not supported."
        )
    *ups, down = projections
    fits = down.outputs == hidden and all(p.inputs == hidden and p.outputs % down.inputs == 0 for p in ups)
    if not fits:
        shapes = ", ".join(f"{p.name} {p.inputs}->{p.outputs}" for p in projections)
        raise InputError(f"Layer {number}: cannot tell the down projection among {shapes} (hidden size {hidden}).")
    return MLP(tuple(ups), down)


def width(model: PreTrainedModel, site: SiteName) -> int:
    """Neurons per layer at a site."""
    down = mlps(model)[0].down
    return down.inputs if site == "mlp_act" else down.outputs


def width_by_config(config: Any, site: SiteName) -> int | None:
    """Neurons per layer as the config says, before any weights are loaded; None where it does not say."""
    if site != "mlp_act":
        return int(config.hidden_size)
    for name in ("intermediate_size", "n_inner", "ffn_dim"):
        size = getattr(config, name, None)
        if isinstance(size, int):
            return size
    return None
