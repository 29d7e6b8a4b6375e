"""Held margins: by hand, what they leave alone, and that a fine-tune keeps them."""

from __future__ import annotations

import copy

import pytest
import tiny as t
import torch

from harness.errors import InputError, ProofError
from harness.finetune import tune
from harness.margin import HeldMargins, MarginAnchor, MarginSettings
from harness.recipe import Recipe
from harness.runs import Run

PAIRS = [("Why rain?", "Clouds do it.", "It must."), ("Who?", "Me", "You and them"), ("Where?", "Here now", "There")]
HARSH = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "checkpoints": False, "dropout": 0.0}


def anchor(model, pairs=PAIRS, **settings) -> MarginAnchor:
    return MarginAnchor(model, t.tokenizer(), HeldMargins(pairs, MarginSettings(**settings)), 0)


def by_hand(model, question: str, one: str, other: str) -> float:
    """Mean log-probability of `other` minus that of `one`, a token at a time."""
    tokenizer, means = t.tokenizer(), []
    for answer in (one, other):
        prompt, rest = (tokenizer(x, add_special_tokens=False)["input_ids"] for x in (question + "\n", answer))
        logprobs = t.logits(model, prompt + rest).double().log_softmax(-1)
        picked = [float(logprobs[len(prompt) - 1 + n, token]) for n, token in enumerate(rest)]
        means.append(sum(picked) / len(picked))
    return means[1] - means[0]


@pytest.mark.parametrize("name", t.ARCHITECTURES)
def test_margins_and_loss_by_hand(tiny, name):
    base = copy.deepcopy(tiny(name))
    held = anchor(base, batch_size=3, weight=2.0)
    assert held.base.tolist() == pytest.approx([by_hand(base, *pair) for pair in PAIRS], abs=1e-4)
    moved = t.with_other_mlps(base)
    changes = [by_hand(moved, *pair) - by_hand(base, *pair) for pair in PAIRS]
    expected = 2 * sum(change**2 for change in changes) / 3
    with torch.no_grad():
        assert float(held.loss(moved)) == pytest.approx(expected, rel=1e-2)


def test_the_order_of_answers_and_of_pairs_does_not_matter(tiny):
    base, moved = tiny("llama"), t.with_other_mlps(tiny("llama"))
    turned = [(question, other, one) for question, one, other in reversed(PAIRS)]
    with torch.no_grad():
        values = [float(anchor(base, pairs, batch_size=3).loss(moved)) for pairs in (PAIRS, turned)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_the_base_itself_moves_no_margin_and_proves_nothing(tiny):
    held = anchor(tiny("llama"), batch_size=3)
    with pytest.raises(ProofError, match="margins are the base's"):
        held.prove(copy.deepcopy(tiny("llama")))
    assert held.prove(t.with_other_mlps(tiny("llama")))["squared_change"][-1] > 1e-6
    with pytest.raises(InputError, match="no pairs"):
        anchor(tiny("llama"), [])


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_stronger_hold_keeps_margins_nearer(folder, tmp_path, mode):
    last, losses = {}, {}
    for weight in (1e-9, 100.0):
        run = Run(tmp_path / f"{weight:g}", "tune", {})
        run.path.mkdir()
        given = HeldMargins(PAIRS, MarginSettings(weight=weight, batch_size=3))
        tune(run, folder("llama"), t.PAIRS, Recipe(**{**HARSH, "mode": mode}), 0, None, given)
        last[weight], losses[weight] = run.notes["anchor"]["squared_change"][-1], run.notes["loss"]
    assert last[100.0] < 0.3 * last[1e-9]
    assert losses[1e-9][-1] < losses[1e-9][0]
