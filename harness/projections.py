"""Where gate, query, key and value neurons live in a decoder: outputs of projections, before activation, RoPE and norms.

| site | tensor | width |
| --- | --- | --- |
| gate | output of the MLP's gate projection, before the activation function | m (intermediate) |
| q | output of the query projection | heads * head size |
| k, v | outputs of the key and value projections | key-value heads * head size |

A projection of its own is found by its name and checked by its shape. A fused one is sliced: gate and up (Phi-3) and
q, k, v as blocks (Phi-3, GPT-2) or head by head (GPT-NeoX). Other fused layouts cannot be told from shapes, so they are
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from harness.errors import InputError, choices
from harness.sites import Projection, base_layer, decoder_layers, mlps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ProjectionSite = Literal["gate", "q", "k", "v"]
PROJECTION_SITES: tuple[ProjectionSite, ...] = get_args(ProjectionSite)

OWN = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
FUSED = {  # model type and name of the module -> how its outputs are ordered
    ("phi3", "qkv_proj"): "blocks",
    ("gpt2", "c_attn"): "blocks",
    ("gpt_neox", "query_key_value"): "heads",
}


@dataclass(frozen=True)
class Part:
    """A site's share of a module's output: columns `start` to `stop` of each of `groups` equal groups."""

    module: nn.Module
    start: int
    stop: int
    groups: int = 1

    @property
    def width(self) -> int:
        """Neurons."""
        return self.groups * (self.stop - self.start)

    def take(self, output: Float[Tensor, "b s o"]) -> Float[Tensor, "b s n"]:
        """The site's activations out of what the module returned."""
        if self.groups == 1:
            return output[..., self.start : self.stop]
        return output.unflatten(-1, (self.groups, -1))[..., self.start : self.stop].flatten(-2)


def projection_parts(
    model: PreTrainedModel, sites: Sequence[ProjectionSite] = PROJECTION_SITES
) -> list[dict[ProjectionSite, Part]]:
    """Where each layer keeps the neurons of these sites.

    Raises:
        InputError: no or an unknown site, a model without it, a fused layout that is not known, or layers of different
            widths.
    """
    if unknown := set(sites) - set(PROJECTION_SITES):
        raise InputError(f"There is no site {choices(unknown)} here; sites: {choices(PROJECTION_SITES)}.")
    if not sites:
        raise InputError(f"No site was given; sites: {choices(PROJECTION_SITES)}.")
    layers: list[dict[ProjectionSite, Part]] = [{} for _ in decoder_layers(model)]
    if "gate" in sites:
        for layer, part in zip(layers, _gates(model), strict=True):
            layer["gate"] = part
    if set(sites) - {"gate"}:
        for number, (layer, block) in enumerate(zip(layers, decoder_layers(model), strict=True)):
            layer |= {site: part for site, part in _attention(model, number, block).items() if site in sites}
    for site in sites:
        if len(widths := {layer[site].width for layer in layers}) > 1:
            raise InputError(f"The layers have different widths at {site} ({choices(widths)}); not supported.")
    return layers


def _gates(model: PreTrainedModel) -> list[Part]:
    parts = []
    for number, mlp in enumerate(mlps(model)):
        width, found = mlp.down.inputs, {up.name.rsplit(".", 1)[-1]: up for up in mlp.ups}
        gate = found.get("gate_proj") or found.get("gate_up_proj")
        rows = 1 if "gate_proj" in found else 2
        if sum(up.outputs for up in mlp.ups) == width:
            raise InputError(
                f"{type(model).__name__} has no gate: its MLPs have a single projection ({choices(found)}) before the "
                "activation. The site gate is for gated MLPs; leave it out."
            )
        if gate is None or gate.outputs != rows * width:
            raise InputError(
                f"Layer {number}: cannot tell the gate among {choices(found)} (intermediate size {width})."
            )
        parts.append(Part(gate.module, 0, width))
    return parts


def _attention(model: PreTrainedModel, number: int, block: nn.Module) -> dict[ProjectionSite, Part]:
    config: Any = model.config.get_text_config()
    found = _linear_maps(block)
    if all(name in found for name in OWN.values()):
        return {site: Part(found[name].module, 0, found[name].outputs) for site, name in OWN.items()}  # type: ignore[misc]
    for name, projection in found.items():
        layout = FUSED.get((config.model_type, name))
        if layout is None:
            continue
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        size, rest = divmod(projection.outputs, heads + 2 * kv_heads)
        if rest or (layout == "heads" and kv_heads != heads):
            continue
        groups, q, kv = (heads, size, size) if layout == "heads" else (1, heads * size, kv_heads * size)
        edges = {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)}
        return {site: Part(projection.module, *edge, groups) for site, edge in edges.items()}  # type: ignore[misc]
    known = choices(f"{name} of {model_type}" for model_type, name in FUSED)
    raise InputError(
        f"Layer {number} of {type(model).__name__} ({config.model_type}): cannot tell queries, keys and values among "
        f"{choices(found)}. Known are {choices(OWN.values())}, and fused {known}."
    )


def _linear_maps(block: nn.Module) -> dict[str, Projection]:
    found: dict[str, Projection] = {}
    for name, child in block.named_children():
        if "attn" in name or "attention" in name:
            for path, module in child.named_modules():
                inside = path.endswith(".base_layer") or ".lora_" in path
                if not inside and isinstance(base_layer(module), (nn.Linear, Conv1D)):
                    found[path.rsplit(".", 1)[-1]] = Projection(path, module)
    return found
