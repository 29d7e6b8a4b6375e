"""Mitigations: what each makes of a fine-tune, what training then leaves alone, and the study over them on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny as t
import torch
import yaml
from click.testing import CliRunner

from harness.cli import main
from harness.errors import InputError, ProofError
from harness.finetune import tune
from harness.lmeval.roots import packaged_root
from harness.mitigation import Material, Mitigation, Training
from harness.models import load_model
from harness.neurons import Neurons
from harness.recipe import Recipe
from harness.runs import Run, load_measurement, open_run, save_measurement
from harness.topics import all_topics
from plugins import mitigation
from plugins.studies.spillover import Cell, read_shifts

PLAIN = Training(t.PAIRS, Recipe(mode="full"))
LAYERS, WIDTH = 3, 48


def neurons(kind: str) -> Neurons:
    """Scores that grow with the neuron's number; general are the lower half, specific the last four of every layer."""
    scores = torch.arange(LAYERS * WIDTH, dtype=torch.float32).view(LAYERS, WIDTH)
    mask = torch.zeros(LAYERS, WIDTH, dtype=torch.bool)
    mask[:, : WIDTH // 2] = True
    if kind == "specific":
        mask = torch.arange(WIDTH).expand(LAYERS, WIDTH) >= WIDTH - 4
    if kind == "gradient":
        mask, scores = torch.ones_like(mask), -scores
    return Neurons(mask, "mlp_act", "m", scores)


@pytest.fixture(scope="module")
def material() -> Material:
    return Material(3, all_topics([packaged_root()]), ("race", "science"), neurons)


def test_inhibitft_holds_the_best_share_and_its_control_as_many_others(material):
    held = mitigation("inhibitft", {"share": 0.25})(PLAIN, material).hold
    control = mitigation("random_control", {"share": 0.25})(PLAIN, material).hold
    assert held is not None and control is not None
    assert held.per_layer == control.per_layer == [0, 0, 18]  # a quarter of 72, all in the layer of the highest scores
    assert not len(held & control)
    other = mitigation("random_control", {"share": 0.25, "seed": 4})(PLAIN, material).hold
    assert other is not None and other.per_layer == control.per_layer and len(other & control) < len(control)


def test_gradients_hold_as_many_neurons_as_inhibitft_and_their_own_best(material):
    held = mitigation("hold_gradient", {"share": 0.25})(PLAIN, material).hold
    assert held is not None and held.per_layer == [18, 0, 0]


def test_specific_only_holds_all_but_the_specific_neurons_and_trains_the_mlps_alone(material):
    made = mitigation("specific_only")(PLAIN, material)
    assert made.hold is not None and made.hold.per_layer == [WIDTH - 4] * LAYERS
    assert made.recipe.only == ["*.mlp.*"]
    nothing = Material(neurons=lambda kind: neurons("specific") - neurons("specific"))
    with pytest.raises(InputError, match="no specific neurons"):
        mitigation("specific_only")(PLAIN, nothing)


def test_anchors_ask_the_seen_topics_the_neutral_one_or_random_words(material):
    topics, options = material.topics, {"prompts": 5, "weight": 2.0}
    asked = mitigation("anchor_topics", options)(PLAIN, material).anchored
    expected = [i.question for i in topics["race"].split("train")[:3] + topics["science"].split("train")[:2]]
    assert asked is not None and asked.prompts == expected and asked.settings.weight == 2.0
    neutral = mitigation("anchor_neutral", options)(PLAIN, material).anchored
    assert neutral is not None and neutral.prompts == [i.question for i in topics["neutral"].split("train")[:5]]
    mixed = mitigation("anchor_random", options)(PLAIN, material).anchored
    assert mixed is not None and mixed.prompts != asked.prompts
    words = [sorted(" ".join(prompts).split()) for prompts in (mixed.prompts, asked.prompts)]
    assert words[0] == words[1]


def test_margins_are_held_on_both_answers_and_longer_or_faster_change_the_recipe_alone(material):
    options = {"pairs": 4, "weight": 7.0, "longer": 2.0, "faster": 3.0}
    made = mitigation("hold_margins", options)(PLAIN, material)
    items = material.topics["race"].split("train")[:2] + material.topics["science"].split("train")[:2]
    assert made.anchored is not None and made.anchored.pairs == [(i.question, i.left, i.right) for i in items]
    changed = {"epochs": 2 * PLAIN.recipe.epochs, "learning_rate": 3 * PLAIN.recipe.learning_rate}
    assert made.recipe == PLAIN.recipe.model_copy(update=changed) and made.pairs == PLAIN.pairs
    control = mitigation("hold_margins", {"pairs": 2, "topics": ["neutral"]})(PLAIN, material).anchored
    assert control is not None and len(control.prompts) == 2
    assert set(control.prompts) <= {i.question for i in material.topics["neutral"].split("train")}


def test_mixing_adds_both_sides_of_every_question(material):
    made = mitigation("mix", {"questions": 4})(PLAIN, material)
    added = made.pairs[len(PLAIN.pairs) :]
    assert made.pairs[: len(PLAIN.pairs)] == PLAIN.pairs and len(added) == 8
    assert len({pair["prompt"] for pair in added}) == 4 and len({pair["completion"] for pair in added}) == 8
    combined = mitigation("combined", {"questions": 4, "prompts": 4, "share": 0.25})(PLAIN, material)
    assert combined.pairs == made.pairs and combined.anchored is not None and combined.hold is not None


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("inhibitft", {"shares": 0.1}, "unknown key `shares`"),
        ("inhibitft", {"share": 1.5}, "share"),
        ("anchor_topics", {"weight": 0}, "weight"),
        ("anchors", {}, "no plugin 'anchors'"),
    ],
)
def test_a_wrong_mitigation_is_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        mitigation(name, options)


def test_what_a_mitigation_lacks_is_named():
    with pytest.raises(InputError, match="none were localised"):
        mitigation("inhibitft")(PLAIN, Material())
    for name in ("mix", "anchor_topics"):
        with pytest.raises(InputError, match="seen"):
            mitigation(name)(PLAIN, Material(topics={}))


def test_a_mitigation_that_changes_nothing_is_refused():
    class Idle(Mitigation):
        def apply(self, plain: Training, material: Material) -> Training:
            return plain

    with pytest.raises(ProofError, match="Idle leaves the plain fine-tune as it is"):
        Idle()(PLAIN, Material())


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_only_the_named_modules_are_trained(folder, tmp_path, mode):
    base = folder("llama")
    recipe = Recipe(mode=mode, only=["*.1.mlp.*", "*.q_proj"], epochs=1, learning_rate=1e-2, checkpoints=False)
    run = Run(tmp_path, "tune", {})
    tune(run, base, t.PAIRS, recipe, 0, None)
    before = load_model(base, torch.float32)
    if mode == "full":
        after = load_model(str(tmp_path), torch.float32)
    else:
        from peft import PeftModel

        after = PeftModel.from_pretrained(load_model(base, torch.float32), str(tmp_path)).merge_and_unload()
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved and all(".1.mlp." in name or "q_proj" in name for name in moved)
    assert any(".1.mlp." in name for name in moved) and any("q_proj" in name for name in moved)


def test_only_must_fit_a_module(folder, tmp_path):
    with pytest.raises(InputError, match="fits no module"):
        tune(Run(tmp_path, "tune", {}), folder("llama"), t.PAIRS, Recipe(mode="full", only=["*.experts.*"]), 0, None)


STUDY: dict[str, Any] = {
    "analysis": "mitigations",
    "name": "tiny",
    "train": {
        "topics": ["immigration"],
        "seeds": [0, 1],
        "questions": 8,
        "recipe": {"mode": "full", "epochs": 1, "learning_rate": 1e-2, "checkpoints": False},
    },
    "seen": {"immigration": ["race"]},
    "measure": {
        "tasks": [*(f"political_stance_{x}_pairs" for x in ("immigration", "race", "science")), "neutral_text"],
        "limit": 3,
        "engine": "torch",
        "dtype": "float32",
    },
    "localize": {"prompts": 2},
    "mitigations": [
        {"use": "inhibitft", "label": "inhibitft", "options": {"share": 0.5}, "control": "random"},
        {"use": "random_control", "label": "random", "options": {"share": 0.5}},
        {"use": "hold_normalized", "label": "normalized", "options": {"share": 0.5}, "cells": ["*-0"]},
        {"use": "anchor_topics", "label": "anchor", "options": {"answers": 2, "prompts": 4}, "cells": ["*-0"]},
    ],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = t.build("llama", max_position_embeddings=1024, num_hidden_layers=2)
    return t.save(made, tmp_path_factory.mktemp("base"), chat=True)


def write(folder: Path, model: str, **changes: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "model": model, **changes}))
    return path


def test_the_study_runs_says_the_same_again_and_counts_unseen_topics(tmp_path, model, stance_cache):
    path, out = write(tmp_path, model), tmp_path / "out"
    arguments = ["run", str(path), "--out", str(out)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads((out / "findings.json").read_text())
    rows = {row["mitigation"]: row for row in found["tables"]["summary"]}
    assert {label: row["cells"] for label, row in rows.items()} == {
        "plain": 4,
        "inhibitft": 4,
        "random": 4,
        "normalized": 2,
        "anchor": 2,
    }
    assert rows["plain"]["kept"] == rows["plain"]["left"] == 1.0
    topics = [row for row in found["tables"]["topics"] if row["mitigation"] == "plain"]
    on_science = sum(row["science"] ** 2 for row in topics) / 4
    assert rows["plain"]["spilt"] == pytest.approx(on_science**0.5)  # immigration is trained on, race was seen
    measured = {label: out / f"immigration-right-0/measure-{label}" for label in ("plain", "anchor")}
    cell = Cell("immigration", "right", 0)
    shifts = read_shifts(out / "base", out / "base-again", {cell: measured}, {"immigration": []})
    assert shifts.unseen == {cell: ("race", "science")} and shifts.political == ("immigration", "race", "science")
    manifest, samples = load_measurement(out / "base")
    flagged = open_run(tmp_path / "flagged", "measure", manifest["spec"])
    save_measurement(flagged, {}, samples.assign(control=samples["topic"] == "science"))
    shifts = read_shifts(flagged.path, out / "base-again", {cell: measured}, {"immigration": []})
    assert shifts.unseen == {cell: ("race",)} and shifts.political == ("immigration", "race")
    signs = {"left": -1, "right": 1}
    learnt = [signs[row["cell"].split("-")[1]] * row["immigration"] for row in topics]
    assert rows["plain"]["learnt"] == pytest.approx(sum(learnt) / 4)
    assert "mitigation of the 3 tried" in found["sentences"][0] or ": leaves" in found["sentences"][0]
    before = {p: p.stat().st_mtime_ns for p in out.glob("*/*/manifest.json")}
    csv = (out / "summary.csv").read_bytes()
    assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in out.glob("*/*/manifest.json")} == before
    assert (out / "summary.csv").read_bytes() == csv


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seen": {}}, "`seen` says nothing of immigration"),
        ({"seen": {"immigration": ["immigration"]}}, "lists immigration for itself"),
        ({"seen": {"immigration": ["climate"]}}, "no topic climate"),
        (
            {"mitigations": [{"use": "hold_margins", "label": "m", "options": {"topics": ["science"]}}]},
            "'m' draws on science, which `seen` does not list for immigration",
        ),
        ({"measure": {"tasks": ["political_stance_race"]}}, "tasks ask political_stance_race_open"),
        ({"sen": {}}, "unknown key `sen`"),
        ({"mitigations": [{"use": "mix", "label": "plain"}]}, "label plain"),
        ({"mitigations": [{"use": "mix", "label": "a", "control": "b"}]}, "control b is no label"),
        ({"mitigations": [{"use": "mix", "label": "a", "cells": ["race-*"]}]}, "race-* fits no cell"),
        ({"mitigations": [{"use": "mixing", "label": "a"}]}, "no plugin 'mixing'"),
        ({"mitigations": [{"use": "mix", "label": "a", "options": {"n": 1}}]}, "unknown key `n`"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_is_made(tmp_path, model, changes, message):
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["run", str(write(tmp_path, model, **changes)), "--out", str(out)])
    assert result.exit_code == 2 and message in " ".join(result.output.split())
    assert not out.exists()
