"""What a PNLAC localisation says about itself, and how it is kept on disk.

`neurons.safetensors` holds scores/<topic> [layers, width] float32 and the sets as uint8; `general.safetensors` and
`specific-<topic>.safetensors` are neuron sets for --hold, --neurons and patching; `localization.json` holds overlap,
share of each layer, rank correlation with plain activation size, and stability over halves of the prompts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from harness.checksums import intact
from harness.documents import read_object
from harness.errors import InputError
from harness.files import check_schema, write_json, write_tensors
from harness.neurons import Neurons
from harness.shapes import Located, check_shape
from plugins.pnlac import Localization

FORMAT, SCHEMA = "stance-localization-1", 1
SWEEP = (1.0, 5.0, 10.0, 20.0, 30.0, 50.0)


def describe(localization: Localization) -> dict[str, Any]:
    """Diagnostics as JSON; `sweep` says how large the general set is at other values of `top`."""
    topics = list(localization.scores)
    sets = {t: localization.selected(t) for t in topics}
    general = localization.general
    selected = len(sets[topics[0]])
    size = localization.size.flatten().double().numpy()
    return {
        "site": localization.site,
        "top": localization.top,
        "tokens": localization.tokens,
        "layers": general.mask.shape[0],
        "width": general.mask.shape[1],
        "selected": selected,
        "general": len(general),
        "general_share": len(general) / selected,
        "stability": localization.stability,
        "sweep": {f"{top:g}": _at(localization, top) for top in SWEEP},
        "per_layer": {
            "general": general.per_layer,
            **{t: localization.specific(t).per_layer for t in topics},
        },
        "overlap": {a: {b: round(sets[a].jaccard(sets[b]), 4) for b in topics} for a in topics},
        "rank_correlation": {
            t: round(_rank_correlation(scores.flatten().double().numpy(), size), 4)
            for t, scores in localization.scores.items()
        },
    }


def save(localization: Localization, description: dict[str, Any], folder: Path) -> None:
    """Write everything the module's text names."""
    general = localization.general
    tensors = {f"scores/{t}": s.float().contiguous() for t, s in localization.scores.items()}
    tensors["general"] = general.mask.to(torch.uint8)
    tensors["activation_size"] = localization.size.float().contiguous()
    general.save(folder / "general.safetensors")
    for topic in localization.scores:
        specific: Neurons = localization.specific(topic)
        tensors[f"specific/{topic}"] = specific.mask.to(torch.uint8)
        specific.save(folder / f"specific-{topic}.safetensors")
    meta = {"format": FORMAT, "site": localization.site, "model": localization.model, "top": str(localization.top)}
    write_tensors(folder / "neurons.safetensors", tensors, meta)
    write_json(folder / "localization.json", {"schema": SCHEMA, **description})


def read(folder: Path) -> dict[str, Any]:
    """localization.json of a finished localisation.

    Raises:
        InputError: there is none, another release made it, or a file of the folder has changed.
    """
    intact(folder)
    file = folder / "localization.json"
    if not file.is_file():
        raise InputError(f"{folder} holds no localization.json; expected a folder `stance localize` wrote.")
    description = read_object(file)
    check_schema(file, description.get("schema", 1), SCHEMA, "localise again")
    check_shape(description, Located, file, "Localise again")
    return description


def _at(localization: Localization, top: float) -> dict[str, float]:
    other = replace(localization, top=top)
    selected, general = len(other.selected(next(iter(other.scores)))), len(other.general)
    return {"selected": selected, "general": general, "general_share": general / selected}


def _rank_correlation(a: Any, b: Any) -> float:
    result: Any = spearmanr(a, b)
    return float(result.statistic)
