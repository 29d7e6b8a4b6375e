"""A fine-tune in two processes on CPUs (gloo): held entries stay the base's bit by bit, figures are those of one process."""

from __future__ import annotations

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
from harness.steps import tune_step

RECIPE = Recipe(mode="full", epochs=2, learning_rate=1e-3, batch_size=4, weight_decay=0.1, checkpoints=False)


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return dict(load_model(str(folder), torch.float32).named_parameters())


def test_two_processes_train_as_one_does_and_what_is_held_stays(folder: Any, tmp_path: Path) -> None:
    base = folder("llama")
    model = load_model(base, torch.float32)
    hold = t.some_neurons(model, "mlp_act", made_in=weights_hash(base))
    runs = {n: tune_step(tmp_path / str(n), base, t.PAIRS, RECIPE, 0, hold, processes=n) for n in (1, 2)}
    one, two, before = weights(tmp_path / "1"), weights(tmp_path / "2"), dict(model.named_parameters())
    moved = max(float((one[name] - before[name]).detach().abs().max()) for name in one)
    apart = max(float((one[name] - two[name]).detach().abs().max()) for name in one)
    assert moved > 1e-3 and apart < 1e-3 * moved
    trained = load_model(str(tmp_path / "2"), torch.float32)
    for old, new in zip(held_entries(model, hold), held_entries(trained, hold), strict=True):
        assert torch.equal(old.projection.weight[old.mask], new.projection.weight[old.mask])
        assert not torch.equal(old.projection.weight[~old.mask], new.projection.weight[~old.mask])
    manifests = {n: run.manifest for n, run in runs.items()}
    assert manifests[2]["spec"]["processes"] == 2 and "processes" not in manifests[1]["spec"]
    assert manifests[2]["hold"]["held_entries"] == manifests[1]["hold"]["held_entries"] > 0
    assert manifests[2]["steps"] == manifests[1]["steps"] == 4
    assert manifests[2]["loss"] == pytest.approx(manifests[1]["loss"], abs=2e-4)


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
    anchored = Anchored(["Why?"], AnchorSettings())
    with pytest.raises(InputError, match="anchor is trained in one process"):
        tune_step(tmp_path / "anchor", base, t.PAIRS, RECIPE, processes=2, anchored=anchored)
    assert not list(tmp_path.iterdir())


def test_neurons_of_another_model_are_refused_before_they_start(folder: Any, tmp_path: Path) -> None:
    hold = Neurons(torch.ones(3, 48, dtype=torch.bool), "mlp_act", "another")
    with pytest.raises(InputError, match="another"):
        tune_step(tmp_path / "run", folder("llama"), t.PAIRS, RECIPE, hold=hold, processes=2)
