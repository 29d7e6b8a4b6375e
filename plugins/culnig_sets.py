"""Sets of gate, q, k and v neurons: one boolean mask [l, n] per site. Size, overlap, matched random sets, and files.

A set on disk carries the hash of the weights it was found in; reading it for another model is an error.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from harness.errors import InputError, choices
from harness.files import check_format, write_tensors
from plugins.culnig import Masks

FORMAT = "stance-projection-neurons-1"


def size(masks: Masks) -> int:
    """Neurons over all sites."""
    return sum(int(mask.sum()) for mask in masks.values())


def members(masks: Masks) -> dict[str, list[list[int]]]:
    """(layer, index) of every neuron, by site: what identifies the set."""
    return {site: mask.nonzero().tolist() for site, mask in sorted(masks.items())}


def overlap(one: Masks, other: Masks) -> tuple[int, float]:
    """Neurons in both sets, and their Jaccard index (1 for two empty sets).

    Raises:
        InputError: sets of different sites or shapes.
    """
    if {s: m.shape for s, m in one.items()} != {s: m.shape for s, m in other.items()}:
        raise InputError("The two sets of neurons are of different sites or models; both must come from one model.")
    both = sum(int((mask & other[site]).sum()) for site, mask in one.items())
    union = size(one) + size(other) - both
    return both, both / union if union else 1.0


def random_like(masks: Masks, seed: int) -> Masks:
    """As many random neurons in every layer of every site, none of them in `masks` where that leaves enough.

    Where it does not, the layer is filled up from `masks`.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: Masks = {}
    for site, mask in masks.items():
        # Members rank behind all others; among equals the order is random.
        rank = torch.rand(mask.shape, generator=generator) + mask.cpu()
        order = rank.argsort(1).argsort(1)
        drawn[site] = order < mask.cpu().sum(1, keepdim=True)
    return drawn


def save(masks: Masks, path: Path, model: str) -> None:
    """Write a set as safetensors; `model`: hash of the weights it was found in."""
    tensors = {site: mask.to(torch.uint8).cpu().contiguous() for site, mask in masks.items()}
    write_tensors(path, tensors, {"format": FORMAT, "model": model})


def load(path: Path, model: str) -> Masks:
    """Read what `save` wrote.

    Raises:
        InputError: no such file, another format, or neurons of another model.
    """
    if not path.is_file():
        raise InputError(f"There is no neuron file {path}; the CULNIG study writes one per set into its localisation.")
    with safe_open(path, framework="pt") as file:
        meta, names = file.metadata() or {}, list(file.keys())
        found: Masks = {name: file.get_tensor(name).bool() for name in names}
    check_format(path, str(meta.get("format")), FORMAT)
    if meta.get("format") != FORMAT or meta.get("model") != model:
        raise InputError(
            f"{path} has format {meta.get('format')!r}, model {str(meta.get('model'))[:12]} and tensors {choices(names)}; "
            f"expected {FORMAT!r} of model {model[:12]}. Localise on this model."
        )
    return found
