"""The anchor: its divergence by hand, what it leaves alone, and that it keeps a fine-tune near the base."""

from __future__ import annotations

import copy

import pytest
import tiny as t
from pydantic import ValidationError

from harness.anchor import Anchor, Anchored, AnchorSettings
from harness.contrast import Sequence
from harness.errors import InputError, ProofError
from harness.finetune import tune
from harness.recipe import Recipe
from harness.runs import Run

PROMPTS = ["Why rain?", "What now?", "Who?", "How far is it?", "Where to?"]
HARSH = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "checkpoints": False, "dropout": 0.0}


def anchor(model, prompts=PROMPTS, lora=False, seed=0, **settings) -> Anchor:
    return Anchor(model, t.tokenizer(), Anchored(prompts, AnchorSettings(**{"answers": 4, **settings})), lora, seed)


def by_hand(base, model, sequences: list[Sequence]) -> float:
    """Mean over positions of the sum over tokens of p log(p / q), one sequence and position at a time."""
    values = []
    for sequence in sequences:
        p, q = (t.logits(m, sequence.ids).double().softmax(-1) for m in (base, model))
        values += [float((p[n] * (p[n] / q[n]).log()).sum()) for n in range(sequence.start, len(sequence.ids))]
    return sum(values) / len(values)


@pytest.mark.parametrize("name", t.ARCHITECTURES)
@pytest.mark.parametrize("answers", [0, 4])
def test_the_divergence_by_hand(tiny, name, answers):
    base = copy.deepcopy(tiny(name))
    held = anchor(base, answers=answers, batch_size=5, weight=3.0)
    moved = t.with_other_mlps(base)
    expected = by_hand(base, moved, held.sequences)
    assert expected > 1e-3
    assert float(held.loss(moved)) == pytest.approx(3 * expected, rel=1e-3)
    assert held.measured == [pytest.approx(expected, rel=1e-3)]


def test_the_base_itself_diverges_by_nothing_and_proves_nothing(tiny):
    held = anchor(tiny("llama"))
    assert float(held.loss(tiny("llama"))) == 0.0
    with pytest.raises(ProofError, match="nothing was held"):
        held.prove(tiny("llama"))


def test_positions_are_the_answers_or_the_prompts(tiny):
    with_answers, alone = anchor(tiny("llama")), anchor(tiny("llama"), answers=0)
    for longer, shorter in zip(with_answers.sequences, alone.sequences, strict=True):
        assert longer.ids[: len(shorter.ids)] == shorter.ids and shorter.start == 0
        assert longer.start == len(shorter.ids) - 1


def test_the_bases_answers_are_written_once_and_stay_the_same(tiny, stance_cache, monkeypatch):
    given = (tiny("llama"), t.tokenizer(), Anchored(PROMPTS, AnchorSettings(answers=4)), False, 0)
    fresh, kept = Anchor(*given), Anchor(*given, identity="w")
    assert kept.sequences == fresh.sequences
    monkeypatch.setattr("harness.anchor.TorchEngine.generate", None)
    assert Anchor(*given, identity="w").sequences == fresh.sequences
    with pytest.raises(TypeError):
        Anchor(*given, identity="other weights")


def test_every_prompt_is_seen_before_one_is_seen_again(tiny):
    held = anchor(tiny("llama"), batch_size=2)
    seen = [tuple(s.ids) for _ in range(5) for s in held._next()]
    assert sorted(seen[:5]) == sorted(seen[5:]) == sorted(tuple(s.ids) for s in held.sequences)
    again = anchor(tiny("llama"), batch_size=2)
    assert seen == [tuple(s.ids) for _ in range(5) for s in again._next()]


def train(folder: str, path, mode: str, anchored: Anchored | None, **changes) -> Run:
    path.mkdir()
    run = Run(path, "tune", {})
    tune(run, folder, t.PAIRS, Recipe(**{**HARSH, "mode": mode, **changes}), 0, None, anchored)
    return run


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_stronger_anchor_keeps_the_model_nearer(folder, tmp_path, mode):
    weights = (1e-9, 1.0, 100.0)
    runs = [
        train(folder("llama"), tmp_path / f"{w:g}", mode, Anchored(PROMPTS, AnchorSettings(weight=w, answers=4)))
        for w in weights
    ]
    first = [run.notes["anchor"]["divergence"][0] for run in runs]
    last = [run.notes["anchor"]["divergence"][-1] for run in runs]
    assert first == pytest.approx([0.0] * 3, abs=1e-6)
    assert last[2] < 0.5 * last[0] and last[1] < last[0]
    plain = train(folder("llama"), tmp_path / "plain", mode, None)
    assert runs[0].notes["loss"][-1] == pytest.approx(plain.notes["loss"][-1], rel=1e-3)
    assert "anchor" not in plain.notes


def test_accumulated_batches_count_the_anchor_once(folder, tmp_path):
    anchored = Anchored(PROMPTS[:1], AnchorSettings(weight=5.0, batch_size=1, answers=4))
    whole = train(folder("llama"), tmp_path / "whole", "full", anchored, batch_size=4)
    halves = train(folder("llama"), tmp_path / "halves", "full", anchored, batch_size=2, gradient_accumulation=2)
    assert whole.notes["steps"] == halves.notes["steps"]
    seen = [run.notes["anchor"]["divergence"] for run in (whole, halves)]
    assert len(seen[0]) == whole.notes["steps"] + 1 and len(seen[1]) == 2 * halves.notes["steps"] + 1
    assert seen[1][:-1:2] == seen[1][1:-1:2]  # twice a step, on the same weights
    assert [*seen[1][:-1:2], seen[1][-1]] == pytest.approx(seen[0], rel=1e-2, abs=1e-5)


def test_bfloat16_training_compares_models_that_are_rounded_alike(folder, tmp_path):
    anchored = Anchored(PROMPTS, AnchorSettings(answers=4))
    run = train(folder("llama"), tmp_path / "run", "full", anchored, precision="bfloat16")
    assert run.notes["anchor"]["divergence"][0] == pytest.approx(0.0, abs=1e-6)


def test_what_is_no_anchor_is_refused(tiny):
    with pytest.raises(InputError, match="no prompts"):
        anchor(tiny("llama"), prompts=[])
    for wrong in ({"weight": 0}, {"batch_size": 0}, {"answers": -1}, {"strength": 1}):
        with pytest.raises(ValidationError):
            AnchorSettings(**wrong)
