"""Interventions inside vLLM: gates at the MLP and the residual stream of every layer, switched between batches.

The load format `stance` (registered in every vLLM process by the entry point `vllm.general_plugins`) builds the model as
usual and puts a `Gate` at each site. A gate holds the five numbers of `harness.interventions.Op` per neuron, in buffers that
are edited in place, so that compiled graphs keep working and nothing is recompiled. Without a compiled graph a gate that is
not in use costs one `if`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from harness.errors import InputError, choices

NEUTRAL = {"scale": 1.0, "shift": 0.0, "low": float("inf"), "high": float("-inf"), "inside": 1.0}
SITES = ("mlp_act", "mlp_out", "resid_post")
DOWN = ("down_proj", "dense_4h_to_h", "c_proj", "fc2")


class Gate(nn.Module):
    """The five numbers of every neuron [n] of one site of one layer; `forward` carries them out.

    Attributes:
        start: first neuron of the slice that this rank of a tensor-parallel group holds.
        used, ranged: whether any neuron has other numbers than NEUTRAL, and a range; compiled graphs compute regardless.
        largest: largest |change| made while `proving`, which only uncompiled gates can say.
    """

    scale: Tensor
    shift: Tensor
    low: Tensor
    high: Tensor
    inside: Tensor

    def __init__(self, width: int, start: int, compiled: bool, like: Tensor) -> None:
        super().__init__()
        self.width, self.start, self.compiled, self.used = width, start, compiled, False
        self.ranged, self.proving, self.largest = False, False, 0.0
        for name, value in NEUTRAL.items():
            self.register_buffer(name, torch.full((width,), value, dtype=like.dtype, device=like.device), False)

    def set(self, neurons: list[int], numbers: Mapping[str, float | list[float]]) -> int:
        """Give these neurons (numbered over all ranks) other numbers; the rest of the layer becomes neutral.

        A number is one for all of them, or a list with one for each.

        Returns:
            how many of them this rank holds.
        """
        held = [place for place, n in enumerate(neurons) if 0 <= n - self.start < self.width]
        mine = torch.tensor([neurons[place] - self.start for place in held], dtype=torch.long)
        for name, value in NEUTRAL.items():
            buffer = getattr(self, name)
            buffer.fill_(value)
            given = torch.as_tensor(numbers[name], dtype=buffer.dtype, device=buffer.device)
            buffer[mine.to(buffer.device)] = given[held] if given.dim() else given
        self.used, self.proving, self.largest = bool(len(mine)), bool(len(mine)), 0.0
        self.ranged = bool((self.low <= self.high).any())
        return len(mine)

    def forward(self, a: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        if not (self.compiled or self.used):
            return a
        c = torch.addcmul(self.shift, a, self.scale)
        if self.compiled or self.ranged:
            c = torch.where((c >= self.low) & (c <= self.high), c * self.inside, c)
        if self.proving and not self.compiled:
            self.largest = max(self.largest, float((c - a).abs().max()))
        return c


def add_gates(model: nn.Module, compiled: bool) -> int:
    """Put a gate at every site of every decoder layer of a vLLM model; returns the number of layers.

    Raises:
        InputError: no layer with an MLP whose down projection can be told (a mixture of experts, say), or a quantised one.
    """
    layers, like = _layers(model), next(model.parameters())
    parts = [_down(layer) for layer in layers]
    for layer, (down, inputs, rank) in zip(layers, parts, strict=True):
        down.add_module("stance_in", Gate(inputs, rank * inputs, compiled, like))
        outputs = int(getattr(down, "output_size", 0) or down.weight.shape[0])
        down.add_module("stance_out", Gate(outputs, 0, compiled, like))
        layer.add_module("stance_resid", Gate(outputs, 0, compiled, like))
        down.__class__ = _subclass(type(down), _down_forward)
        layer.__class__ = _subclass(type(layer), _layer_forward)
    return len(layers)


def gates(model: nn.Module, site: str) -> list[Gate]:
    """The gates of a site, layer by layer.

    Raises:
        InputError: unknown site, or a model that was loaded without gates.
    """
    if site not in SITES:
        raise InputError(f"There are no gates at {site!r}; sites: {choices(SITES)}.")
    name = {"mlp_act": "stance_in", "mlp_out": "stance_out", "resid_post": "stance_resid"}[site]
    found = [module for path, module in model.named_modules() if path.endswith(f".{name}") and isinstance(module, Gate)]
    if not found:
        reason = getattr(model, "stance_refusal", "it was not loaded with load_format=stance.")
        raise InputError(f"This model has no gates, so no intervention can be served: {reason}")
    return found


def _layers(model: nn.Module) -> list[nn.Module]:
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) and hasattr(module[0], "mlp")
    ]
    if len(found) != 1:
        raise InputError(
            f"{type(model).__name__} has {len(found)} lists of blocks with an MLP; gates need exactly one."
        )
    return list(found[0])


def _down(layer: nn.Module) -> tuple[Any, int, int]:
    """Down projection of a layer's MLP, its inputs on this rank, and this rank of the tensor-parallel group."""
    mlp: Any = layer.mlp
    name = next((name for name in DOWN if isinstance(getattr(mlp, name, None), nn.Module)), None)
    if name is None:
        raise InputError(f"{type(mlp).__name__} has none of {choices(DOWN)}; mixtures of experts take no gates.")
    down = getattr(mlp, name)
    inputs = int(getattr(down, "input_size_per_partition", 0) or down.weight.shape[1])
    if "Unquantized" not in type(getattr(down, "quant_method", None)).__name__:
        raise InputError("Quantised models take no gates; serve the weights in bfloat16 or float32.")
    return down, inputs, int(getattr(down, "tp_rank", 0))


def _subclass(kind: type, forward: Any) -> type:
    """The module's class with another `forward`: parameters keep their names, so that weights load as ever."""
    return type(f"Gated{kind.__name__}", (kind,), {"forward": forward(kind)})


def _down_forward(kind: type) -> Any:
    inner: Any = kind.forward  # type: ignore[attr-defined]

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = inner(self, self.stance_in(x), *args, **kwargs)
        return (self.stance_out(out[0]), *out[1:]) if isinstance(out, tuple) else self.stance_out(out)

    return forward


def _layer_forward(kind: type) -> Any:
    inner: Any = kind.forward  # type: ignore[attr-defined]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = inner(self, *args, **kwargs)
        gate = self.stance_resid
        if not (gate.compiled or gate.used):
            return out
        if not isinstance(out, tuple):
            return gate(out)
        hidden, residual = out  # the stream is their sum, which the next layer's norm forms
        stream = hidden + residual
        wanted = gate(stream)
        changed = wanted != stream
        return torch.where(changed, wanted, hidden), torch.where(changed, 0.0, residual)

    return forward
