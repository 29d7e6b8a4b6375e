"""Ranges of each neuron's own: the range op (harness/interventions.py) where every neuron has its bounds and factor.

    c = a * inside where low <= a <= high, else a

Bounds are compared in the activation's dtype, on both engines.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from harness.errors import InputError

if TYPE_CHECKING:
    from harness.neurons import Neurons


@dataclass(frozen=True, eq=False)
class RangeOp:
    """What happens to every neuron of a site. Outside [low, high] an activation stays; where low > high nothing is inside.

    Attributes:
        low, high, inside: [l n] for a whole site, float32, ends in activation units; or [k] for some neurons of a layer.

    Raises:
        InputError: three arrays of different shapes, bounds that are not numbers, or a factor that is not finite.
    """

    low: Float[Tensor, "*shape"]
    high: Float[Tensor, "*shape"]
    inside: Float[Tensor, "*shape"]

    def __post_init__(self) -> None:
        arrays = {name: getattr(self, name).detach().cpu().float() for name in ("low", "high", "inside")}
        shapes = [tuple(array.shape) for array in arrays.values()]
        unusable = arrays["low"].isnan() | arrays["high"].isnan() if len(set(shapes)) == 1 else torch.ones(1)
        if bool(unusable.any()) or not bool(arrays["inside"].isfinite().all()):
            raise InputError(
                f"Ranges came as low {shapes[0]}, high {shapes[1]} and inside {shapes[2]}; expected three arrays of one "
                "shape, layers x neurons of the site, with bounds that are numbers (or infinite) and finite factors."
            )
        for name, array in arrays.items():
            object.__setattr__(self, name, array)

    @classmethod
    def of_layer(
        cls, layer: int, layers: int, low: Float[Tensor, " n"], high: Float[Tensor, " n"], inside: Float[Tensor, " n"]
    ) -> RangeOp:
        """Ranges in one layer of a site; in the others nothing is inside."""
        empty = torch.full((layers, len(low)), torch.inf)
        op = cls(empty, -empty, torch.ones_like(empty))
        for array, row in ((op.low, low), (op.high, high), (op.inside, inside)):
            array[layer] = row.float()
        return op

    @property
    def identity(self) -> bool:
        """Whether it leaves every activation as it is."""
        return bool(((self.low > self.high) | (self.inside == 1)).all())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the three arrays and their shape: what an answer under this op is kept under."""
        hashed = hashlib.sha256(str(tuple(self.low.shape)).encode())
        for array in (self.low, self.high, self.inside):
            hashed.update(array.contiguous().numpy().tobytes())
        return hashed.hexdigest()

    def check(self, neurons: Neurons) -> None:
        """Refuse neurons of another site.

        Raises:
            InputError: the arrays do not have the shape of the neurons' mask.
        """
        if self.low.shape != neurons.mask.shape:
            raise InputError(
                f"The ranges are {tuple(self.low.shape)}; expected {tuple(neurons.mask.shape)}, layers x neurons at "
                f"{neurons.site}. Fit them on the model and at the site that they are served at."
            )

    def at(self, layer: int, index: Tensor) -> RangeOp:
        """The ranges of some neurons of a layer, in the order of `index` [k]."""
        where = index.cpu()
        return RangeOp(self.low[layer, where], self.high[layer, where], self.inside[layer, where])

    def numbers(self) -> dict[str, float | list[float]]:
        """What a gate holds (harness/engines/gates.py), as plain values."""
        ranges = {"low": self.low.tolist(), "high": self.high.tolist(), "inside": self.inside.tolist()}
        return {"scale": 1.0, "shift": 0.0, **ranges}

    def apply(self, a: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The activations after the op; the arrays are [k], the last dimension of `a`."""
        low, high, inside = (array.to(a) for array in (self.low, self.high, self.inside))
        return torch.where((a >= low) & (a <= high), a * inside, a)

    def __str__(self) -> str:
        return f"ranges={self.digest[:32]}"
