"""A fine-tune in two processes on CPUs (gloo), sharded or not: held entries stay bit by bit, figures are one process's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny as t
import torch

from harness.anchor import Anchored, AnchorSettings
from harness.errors import InputError, ProofError
from harness.hold import held_entries
from harness.models import load_model, weights_hash
from harness.neurons import Neurons
from harness.recipe import Recipe
from harness.runs import Run
from harness.steps import tune_step
from harness.variants import tuned_variant

RECIPE = Recipe(mode="full", epochs=2, learning_rate=1e-3, batch_size=4, weight_decay=0.1, checkpoints=False)


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return dict(load_model(str(folder), torch.float32).named_parameters())


LORA = RECIPE.model_copy(update={"mode": "lora", "dropout": 0.0, "learning_rate": 1e-2})


def without_dropout(folder: str, copy: Path) -> str:
    """The same model with nothing left to chance: each process draws its own."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config |= {key: 0.0 for key in config if key.endswith(("pdrop", "dropout"))}
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(copy)


def served(run: Run, base: str) -> Any:
    """The trained model as it is served: its adapter merged."""
    return load_model(tuned_variant(base, run.path).folder(), torch.float32)


# gpt2: weights lie transposed, with biases; phi3: two rows of a fused projection per neuron.
@pytest.mark.parametrize(
    ("architecture", "recipe", "sharded"),
    [
        ("llama", RECIPE, False),
        ("llama", RECIPE, True),
        ("gpt2", RECIPE, True),
        ("phi3", RECIPE, True),
        ("llama", LORA, True),
    ],
)
def test_two_processes_train_as_one_does_and_what_is_held_stays(
    architecture: str, recipe: Recipe, sharded: bool, folder: Any, tmp_path: Path, stance_cache: Path
) -> None:
    base = without_dropout(folder(architecture), tmp_path / "base")
    model = load_model(base, torch.float32)
    hold = t.some_neurons(model, "mlp_act", made_in=weights_hash(base))
    alone = tune_step(tmp_path / "1", base, t.PAIRS, recipe, 0, hold)
    shared = tune_step(tmp_path / "2", base, t.PAIRS, recipe, 0, hold, processes=2, sharded=sharded)
    one, two = served(alone, base), served(shared, base)
    for old, new in zip(held_entries(model, hold), held_entries(two, hold), strict=True):
        assert torch.equal(old.projection.weight[old.mask], new.projection.weight[old.mask])
        assert not torch.equal(old.projection.weight[~old.mask], new.projection.weight[~old.mask])
        if old.projection.bias is not None and new.projection.bias is not None and len(old.rows):
            assert torch.equal(old.projection.bias[old.rows], new.projection.bias[old.rows])
    # Not weight by weight: Adam moves GPT-2's key biases, whose gradients are nothing but rounding, by the sign of that.
    before, ours, theirs = (t.logits(m, t.tokens(40)) for m in (model, one, two))
    moved, apart = (float((ours - other).abs().max()) for other in (before, theirs))
    assert moved > 1e-2 and apart < 2e-3 * moved
    assert shared.manifest["spec"]["processes"] == 2 and "processes" not in alone.manifest["spec"]
    assert shared.manifest["spec"].get("sharded", False) is sharded
    assert shared.manifest["hold"]["held_entries"] == alone.manifest["hold"]["held_entries"] > 0
    assert shared.manifest["steps"] == alone.manifest["steps"] == 4
    assert shared.manifest["loss"] == pytest.approx(alone.manifest["loss"], abs=2e-4)


def test_what_the_first_process_refuses_is_refused_here(folder: Any, tmp_path: Path) -> None:
    base = folder("llama")
    still = RECIPE.model_copy(update={"learning_rate": 1e-30, "epochs": 1, "weight_decay": 0.0})
    with pytest.raises(ProofError, match="changed no weight"):
        tune_step(tmp_path / "still", base, t.PAIRS, still, 0, processes=2)
    assert not (tmp_path / "still" / "manifest.json").exists()


def test_what_processes_cannot_share_is_refused_before_they_start(folder: Any, tmp_path: Path) -> None:
    base = folder("llama")
    with pytest.raises(InputError, match="batch_size is 4 and processes 3"):
        tune_step(tmp_path / "batch", base, t.PAIRS, RECIPE, processes=3)
    with pytest.raises(InputError, match="2 or more"):
        tune_step(tmp_path / "sharded", base, t.PAIRS, RECIPE, sharded=True)
    anchored = Anchored(["Why?"], AnchorSettings())
    with pytest.raises(InputError, match="anchor is trained in one process"):
        tune_step(tmp_path / "anchor", base, t.PAIRS, RECIPE, processes=2, anchored=anchored)
    assert not list(tmp_path.iterdir())


def test_neurons_of_another_model_are_refused_before_they_start(folder: Any, tmp_path: Path) -> None:
    hold = Neurons(torch.ones(3, 48, dtype=torch.bool), "mlp_act", "another")
    with pytest.raises(InputError, match="another"):
        tune_step(tmp_path / "run", folder("llama"), t.PAIRS, RECIPE, hold=hold, processes=2)
