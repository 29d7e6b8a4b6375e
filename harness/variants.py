"""A variant of a model as a folder of weights: adapter merged, neurons zeroed or scaled. Made once, then cached.

Scaling neuron (l, i) by c at every position equals scaling the weights that read it (mlp_act: column i of the down
projection) or write it (mlp_out: row i and its bias), so any engine serves the result without knowing of it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.adapters import adapter_hash, check_adapter, merged
from harness.checksums import digest, file_hash, intact
from harness.errors import InputError, ProofError
from harness.files import replacing_folder
from harness.interventions import ZERO, Op
from harness.models import lineage, load_config, load_model, resolve, weights_hash
from harness.neurons import Neurons
from harness.placed import title
from harness.sites import check_mlp_site, mlps, width, width_by_config
from harness.weights_cache import made_once


def materialise(model: str, adapter: Path | None = None, neurons: Neurons | None = None, op: Op | None = None) -> str:
    """The folder of weights that serves a variant; the model's own folder when nothing is changed.

    Raises:
        InputError: an adapter or neurons of another model.
        ProofError: the adapter or the operation changed no weight.
    """
    folder, op = resolve(model), op or ZERO
    if adapter is None and neurons is None:
        return folder
    if neurons is not None:
        check_bakeable(neurons, op)
    if adapter is not None:
        check_adapter(adapter, folder)
    key = {
        "model": weights_hash(folder),
        "adapter": adapter_hash(adapter) if adapter else None,
        "neurons": None if neurons is None else digest([neurons.model, neurons.mask.nonzero().tolist()]),
        "site": None if neurons is None else neurons.site,
        "factor": None if neurons is None else op.scale,
    }

    def make() -> tuple[Any, dict[str, Any]]:
        changed, effect = load_model(folder), {}
        if adapter is not None:
            changed, effect["adapter"] = merged(changed, adapter)
        if neurons is not None:
            effect |= _scale(changed, neurons, op, lineage(folder))
        return changed, effect

    return made_once(key, folder, lineage(folder), make)


def export(out: Path, model: str, adapter: Path | None, neurons: Neurons | None, op: Op | None) -> dict[str, Any]:
    """Write a variant as an ordinary checkpoint, for serving anywhere; returns its manifest.

    Raises:
        InputError: nothing to change, an op or site that weights cannot carry, or a folder that holds something.
        ProofError: the operation changed no weight.
    """
    if adapter is None and neurons is None:
        raise InputError("There is nothing to export: give --adapter, or --neurons with --op, or both.")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty. Nothing is overwritten: give another --out, or remove the folder.")
    made = materialise(model, adapter, neurons, op)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(out) as scratch:
        shutil.copytree(made, scratch, dirs_exist_ok=True)
    return intact(out)


def check_bakeable(neurons: Neurons, op: Op) -> None:
    """Refuse what no weights can carry.

    Raises:
        InputError: an op that is no multiplication, or neurons of the residual stream.
    """
    check_mlp_site(neurons.site, f"Writing {op} into weights")
    if not op.linear:
        raise InputError(f"{op} cannot be written into weights; zero and scale=X can. `stance eval` serves every op.")


@torch.no_grad()
def _scale(model: Any, neurons: Neurons, op: Op, parents: list[str]) -> dict[str, float]:
    layers = mlps(model)
    neurons.check_model(width(model, neurons.site), len(layers), parents)
    changed = 0
    for layer, mlp in enumerate(layers):
        index = neurons.indices(layer)
        weight = mlp.down.weight
        part = weight[:, index] if neurons.site == "mlp_act" else weight[index]
        new = part * op.scale
        changed += int((new != part).sum())
        if neurons.site == "mlp_act":
            weight[:, index] = new
        else:
            weight[index] = new
            if mlp.down.bias is not None:
                mlp.down.bias[index] *= op.scale
    if not changed and op.scale != 1:
        raise ProofError(f"{op} on {len(neurons)} neurons changed no weight; the set is empty or the weights are zero.")
    return {"neurons": len(neurons), "changed_weights": changed, "factor": op.scale}


@dataclass(frozen=True)
class Variant:
    """A model as it is served: base weights, perhaps an adapter, perhaps an operation on neurons."""

    model: str
    adapter: Path | None = None
    neurons: Path | None = None
    op: Op | None = None

    def spec(self) -> dict[str, Any]:
        """What identifies the variant, with content hashes instead of paths."""
        folder = resolve(self.model)
        return {
            "model": title(self.model),
            "weights": weights_hash(folder),
            "adapter": adapter_hash(self.adapter) if self.adapter else None,
            "neurons": file_hash(self.neurons) if self.neurons else None,
            "op": str(self.op) if self.op else None,
        }

    def check(self) -> None:
        """Refuse what does not fit together, before any weights are loaded.

        Raises:
            InputError: unknown model, adapter of another model, unreadable neurons, op without neurons.
        """
        folder = resolve(self.model)
        if self.adapter is not None:
            check_adapter(self.adapter, folder)
        if (self.neurons is None) != (self.op is None):
            raise InputError(
                "--neurons and --op go together: give both (such as --neurons general.safetensors --op zero)."
            )
        if self.neurons is not None:
            neurons = Neurons.load(self.neurons)
            check_neurons(neurons, folder)

    def folder(self, merged: bool = True) -> str:
        """Weights to serve (made on first use): with the adapter merged, or those of the model it belongs to.

        The engine carries out the op on the neurons.
        """
        return materialise(self.model, self.adapter if merged else None)

    def effect(self) -> dict[str, float] | None:
        """What merging the adapter changed, as it was proven; None without one."""
        if self.adapter is None:
            return None
        return (intact(Path(self.folder())).get("effect") or {}).get("adapter")


def tuned_variant(model: str, tuned: Path) -> Variant:
    """A tune's result as something to serve: a folder of weights, or an adapter on its base."""
    if (tuned / "adapter_config.json").is_file():
        return Variant(model, adapter=tuned)
    return Variant(str(tuned))


def check_neurons(neurons: Neurons, folder: str) -> None:
    """Refuse neurons of another model, by config and weights hash alone."""
    config = load_config(folder).get_text_config()
    site_width = width_by_config(config, neurons.site) or neurons.mask.shape[1]
    neurons.check_model(site_width, int(config.num_hidden_layers), lineage(folder))
