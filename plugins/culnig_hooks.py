"""What CULNIG's scoring hooks onto a model: activation times gradient of every projection, reduced as it arrives.

The graph begins at the first projections, whose outputs become leaves; parameters take no gradient. Every product is reduced
to its largest over positions and added to running sums, so nothing of a batch outlives it (arXiv 2510.08284).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from harness.projections import Part, ProjectionSite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PerSite = dict[ProjectionSite, Float[Tensor, "l _"]]


def wide(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass
class Sums:
    """Running sums of P * s_k, and what hooks must know of the batch in progress."""

    sums: list[PerSite]
    clip: bool
    last: Tensor = field(default_factory=torch.Tensor)
    pads: Tensor | None = None
    floored: list[Tensor] = field(default_factory=list)
    weight: Tensor = field(default_factory=torch.Tensor)
    leaves: list[Tensor] = field(default_factory=list)
    reduced: int = 0

    def reduce(self, layer: int, site: ProjectionSite, product: Float[Tensor, "b s n"]) -> None:
        """Add one projection's activation times gradient to the sums."""
        if self.pads is not None:
            product.masked_fill_(self.pads, -torch.inf)
        largest = product.amax(1).double()
        for sums, floored in zip(self.sums, self.floored, strict=True):
            weighted = self.weight * torch.where(floored, largest.clamp(min=0), largest)
            sums[site][layer] += (weighted.clamp(min=0) if self.clip else weighted).sum(0)
        self.reduced += 1


@contextmanager
def hooked(
    model: PreTrainedModel, layers: list[dict[ProjectionSite, Part]], head: nn.Module, state: Sums
) -> Iterator[None]:
    """Backward passes reduce every site's products, the head sees last positions alone, parameters have no gradient."""

    def before_head(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden: Tensor = args[0]
        return (hidden[torch.arange(len(hidden), device=hidden.device), state.last][:, None], *args[1:])

    def after(layer: int, mine: dict[ProjectionSite, Part], _module: Any, _args: Any, output: Tensor) -> Tensor:
        if not output.requires_grad:  # the graph begins at the first projections
            state.leaves.append(output.detach().requires_grad_())
            output = state.leaves[-1].clone()  # some models clip in place, which a leaf forbids
        activation = output.detach()  # the tensor itself would be a cycle that is never freed

        def arrived(gradient: Tensor) -> None:
            for site, part in mine.items():
                state.reduce(layer, site, wide(part.take(activation)) * part.take(gradient))

        output.register_hook(arrived)
        return output

    with ExitStack() as stack:
        for parameter in model.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        stack.callback(head.register_forward_pre_hook(before_head).remove)
        for layer, parts in enumerate(layers):
            for module in dict.fromkeys(part.module for part in parts.values()):
                mine: dict[ProjectionSite, Part] = {s: part for s, part in parts.items() if part.module is module}
                stack.callback(module.register_forward_hook(partial(after, layer, mine)).remove)
        yield
