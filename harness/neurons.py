"""Neurons: which neurons of which site of which model. Set algebra, sampling, and safetensors on disk.

A set always carries its site, its width, its layers and the weights hash of the model it came from; combining or using
it where these differ is an error.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.checksums import intact
from harness.errors import InputError, choices
from harness.files import check_format, write_tensors
from harness.sites import SiteName, check_site

FORMAT = "stance-neurons-1"


@dataclass(frozen=True)
class Neurons:
    """A set of neurons of one site.

    Attributes:
        mask: [l, n] True where the neuron belongs to the set.
        site: where the neurons live.
        model: SHA-256 of the weights they were found in.
        scores: [l, n] float32 ranking of the members (higher first), or None.
    """

    mask: Bool[Tensor, "l n"]
    site: SiteName
    model: str
    scores: Float[Tensor, "l n"] | None = None

    def __len__(self) -> int:
        return int(self.mask.sum())

    @property
    def per_layer(self) -> list[int]:
        """Members in each layer."""
        return [int(n) for n in self.mask.sum(1)]

    def indices(self, layer: int) -> Tensor:
        """Members of one layer, ascending."""
        return self.mask[layer].nonzero().flatten()

    def _same(self, other: Neurons) -> None:
        mine, theirs = (self.site, self.mask.shape, self.model), (other.site, other.mask.shape, other.model)
        if mine != theirs:
            raise InputError(
                f"Neurons of {_address(self)} cannot be combined with neurons of {_address(other)}; "
                "both must come from one site of one model."
            )

    def __and__(self, other: Neurons) -> Neurons:
        self._same(other)
        return replace(self, mask=self.mask & other.mask)

    def __or__(self, other: Neurons) -> Neurons:
        self._same(other)
        return replace(self, mask=self.mask | other.mask)

    def __sub__(self, other: Neurons) -> Neurons:
        self._same(other)
        return replace(self, mask=self.mask & ~other.mask)

    def jaccard(self, other: Neurons) -> float:
        """|A and B| / |A or B|; 1 for two empty sets."""
        union = len(self | other)
        return len(self & other) / union if union else 1.0

    def top(self, share: float) -> Neurons:
        """The best-scored `share` of the members (at least one), ranked over all layers.

        Raises:
            InputError: share outside (0, 1], or a set without scores or members.
        """
        if not 0 < share <= 1:
            raise InputError(f"share is {share}; expected above 0 and at most 1 (0.05 is 5% of the set).")
        if not len(self):
            raise InputError("The set holds no neurons, so there is no share to take; localise with a larger --top.")
        if share == 1:
            return self
        if self.scores is None:
            raise InputError("These neurons carry no scores, so a share of them has no order; use share 1.")
        count = max(1, round(share * len(self)))
        ranked = torch.where(self.mask, self.scores, -torch.inf).flatten()
        mask = torch.zeros_like(self.mask).flatten()
        mask[ranked.topk(count).indices] = True
        return replace(self, mask=mask.view_as(self.mask))

    def random_like(self, seed: int, exclude: Neurons | None = None) -> Neurons:
        """As many random neurons in every layer, drawn outside `exclude` where that leaves enough.

        Layers of which the excluded neurons leave too few are filled up from the excluded ones.
        """
        if exclude is not None:
            self._same(exclude)
        generator = torch.Generator().manual_seed(seed)
        mask = torch.zeros_like(self.mask)
        for layer, count in enumerate(self.per_layer):
            order = torch.randperm(self.mask.shape[1], generator=generator)
            if exclude is not None:
                inside = exclude.mask[layer][order]
                order = torch.cat([order[~inside], order[inside]])
            mask[layer, order[:count]] = True
        return replace(self, mask=mask, scores=None)

    def check_shape(self, site_width: int, layers: int) -> None:
        """Refuse a model of other width or depth.

        Raises:
            InputError: the mask does not have the model's shape.
        """
        if self.mask.shape != (layers, site_width):
            raise InputError(
                f"The neurons are of {self.mask.shape[0]} layers x {self.mask.shape[1]} at {self.site}; "
                f"the model has {layers} x {site_width}. They come from another model."
            )

    def check_model(self, site_width: int, layers: int, lineage: list[str]) -> None:
        """Refuse a model these neurons do not belong to.

        Raises:
            InputError: other width or depth, or a model whose lineage does not hold the model they were found in.
        """
        self.check_shape(site_width, layers)
        if self.model not in lineage:
            raise InputError(
                f"The neurons were found in a model with weights {self.model[:12]}; this one is {lineage[0][:12]} and "
                f"was made from {choices(h[:12] for h in lineage[1:])}. Localise on this model, or use the one they fit."
            )

    def save(self, path: Path) -> None:
        """Write `mask` (and `scores`) as safetensors with the address in the metadata."""
        tensors = {"mask": self.mask.to(torch.uint8).contiguous()}
        if self.scores is not None:
            tensors["scores"] = self.scores.float().contiguous()
        meta = {"format": FORMAT, "site": self.site, "model": self.model}
        write_tensors(path, tensors, meta)

    @classmethod
    def load(cls, path: Path | str) -> Neurons:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, not safetensors, not a neuron set, or a localisation that is unfinished or altered.
        """
        path = Path(path)
        intact(path.parent)
        if not path.is_file():
            raise InputError(f"There is no neuron file {path}; `stance localize pnlac` writes general.safetensors.")
        try:
            with safe_open(path, framework="pt") as file:
                meta, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is not a readable safetensors file ({error}).") from None
        check_format(path, str(meta.get("format")), FORMAT)
        if meta.get("format") != FORMAT or "mask" not in tensors:
            raise InputError(
                f"{path} is no set of neurons (format {meta.get('format')!r}, tensors {choices(tensors)}); "
                f"expected format {FORMAT!r} with a tensor `mask`, such as general.safetensors of a localisation."
            )
        mask, scores = tensors["mask"].bool(), tensors.get("scores")
        if mask.dim() != 2 or (scores is not None and scores.shape != mask.shape):
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
            raise InputError(
                f"{path} holds {shapes}; expected a mask of layers x neurons, and scores of the same shape."
            )
        return cls(mask, check_site(meta.get("site", "")), meta.get("model", ""), scores)


def _address(neurons: Neurons) -> str:
    layers, site_width = neurons.mask.shape
    return f"site {neurons.site}, {layers} layers x {site_width}, model {neurons.model[:12]}"
