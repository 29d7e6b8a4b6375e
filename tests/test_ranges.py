"""Bounds of each neuron's own: the op by itself, and in Torch hooks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny as t
import torch

from harness.engines.gates import Gate
from harness.engines.torch import TorchEngine
from harness.errors import InputError, ProofError
from harness.interventions import ZERO, Op, applying
from harness.neurons import Neurons
from harness.ranges import RangeOp
from harness.sites import SITES

IDS = t.tokens(11, seed=7)
every_site = pytest.mark.parametrize("site", SITES)


def same(neurons: Neurons, low: float, high: float, inside: float) -> RangeOp:
    """One range for all."""
    return RangeOp(*(torch.full(neurons.mask.shape, value) for value in (low, high, inside)))


@every_site
def test_equal_ranges_are_the_op_for_all(tiny, site):
    model = tiny("llama")
    neurons = t.some_neurons(model, site)
    with applying(model, neurons, Op(low=-0.2, high=0.4, inside=-2.0)):
        wanted = t.logits(model, IDS)
    with applying(model, neurons, same(neurons, -0.2, 0.4, -2.0)) as effect:
        assert torch.equal(t.logits(model, IDS), wanted)
    assert effect.largest > 0 and not torch.allclose(wanted, t.logits(model, IDS), atol=1e-3)


@every_site
def test_infinite_ranges_with_factor_0_are_the_full_mask(tiny, site):
    model = tiny("llama")
    neurons = t.some_neurons(model, site)
    with applying(model, neurons, ZERO):
        full = t.logits(model, IDS)
    with applying(model, neurons, same(neurons, -math.inf, math.inf, 0.0)):
        assert torch.equal(t.logits(model, IDS), full)


def test_ranges_that_hold_nothing_are_the_identity(tiny):
    model = tiny("llama")
    neurons = t.some_neurons(model, "mlp_act")
    assert same(neurons, 1.0, -1.0, 0.0).identity and same(neurons, -1.0, 1.0, 1.0).identity
    assert not same(neurons, -1.0, 1.0, 0.5).identity
    with applying(model, neurons, same(neurons, 1.0, -1.0, 0.0)) as effect:
        assert torch.equal(t.logits(model, IDS), t.logits(model, IDS)) and effect.largest == 0
    with pytest.raises(ProofError, match="changed none"), applying(model, neurons, same(neurons, 1e6, 1e7, 0.0)):
        t.logits(model, IDS)


def test_every_neuron_has_its_own_numbers():
    low, high = torch.tensor([[0.0, -1.0], [2.0, 5.0]]), torch.tensor([[1.0, -0.5], [3.0, 4.0]])
    op = RangeOp(low, high, torch.tensor([[0.0, 2.0], [0.5, 9.0]]))
    a = torch.tensor([[0.0, -1.0], [1.0, -0.5], [1.1, -0.4]])
    assert op.at(0, torch.tensor([0, 1])).apply(a).tolist() == [[0.0, -2.0], [0.0, -1.0], [a[2, 0], a[2, 1]]]
    assert op.at(1, torch.tensor([1, 0])).apply(torch.tensor([4.5, 2.0])).tolist() == [4.5, 1.0]
    gate = Gate(2, 0, False, a)
    assert gate.set([1, 0], op.at(0, torch.tensor([1, 0])).numbers()) == 2 and gate.ranged
    assert torch.equal(gate(a), op.at(0, torch.tensor([0, 1])).apply(a))
    assert gate.set([1], op.at(1, torch.tensor([1])).numbers()) == 1 and not gate.ranged
    assert torch.equal(gate(a), a)


def test_a_rank_holds_its_own_slice_of_the_numbers():
    op = RangeOp.of_layer(0, 1, torch.arange(4.0) - 0.5, torch.arange(4.0) + 0.5, torch.arange(4.0))
    first, second = (Gate(2, start, False, torch.zeros(1)) for start in (0, 2))
    index = torch.tensor([0, 2, 3])
    assert [g.set(index.tolist(), op.at(0, index).numbers()) for g in (first, second)] == [1, 2]
    a = torch.arange(4.0)
    assert torch.cat([first(a[:2]), second(a[2:])]).tolist() == [0.0, 1.0, 4.0, 9.0]


def test_what_is_kept_under_the_op_follows_every_number(tiny):
    op = RangeOp.of_layer(1, 3, torch.zeros(4), torch.ones(4), torch.zeros(4))
    again = RangeOp.of_layer(1, 3, torch.zeros(4), torch.ones(4), torch.zeros(4))
    assert op.digest == again.digest and str(op) == str(again)
    others = [RangeOp.of_layer(2, 3, torch.zeros(4), torch.ones(4), torch.zeros(4))]
    for name in ("low", "high", "inside"):
        changed = getattr(op, name).clone()
        changed[1, 2] += 1e-6
        others.append(replace(op, **{name: changed}))
    assert len({op.digest, *(other.digest for other in others)}) == 5


def test_torch_serves_ranges_and_takes_them_back(tiny):
    model = tiny("llama")
    engine = TorchEngine(model, t.tokenizer())
    neurons = t.some_neurons(model, "resid_post")
    base = engine.score_choices([(IDS, [20, 30])])
    assert engine.intervene(neurons, same(neurons, -0.3, 0.3, 0.0)) > 0
    assert engine.score_choices([(IDS, [20, 30])]) != base
    engine.intervene(None, ZERO)
    assert engine.score_choices([(IDS, [20, 30])]) == base
    assert engine.intervene(neurons, same(neurons, 1.0, -1.0, 0.0)) == 0.0


def test_ranges_of_another_shape_are_refused(tiny):
    neurons = t.some_neurons(tiny("llama"), "mlp_act")
    wrong = RangeOp.of_layer(0, t.LAYERS, torch.zeros(7), torch.ones(7), torch.zeros(7))
    with pytest.raises(InputError, match="Fit them on the model"), applying(tiny("llama"), neurons, wrong):
        pass
    for arrays in (
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2)),
        (torch.tensor([math.nan]), torch.ones(1), torch.ones(1)),
        (torch.zeros(1), torch.ones(1), torch.tensor([math.inf])),
    ):
        with pytest.raises(InputError, match="three arrays of one shape"):
            RangeOp(*arrays)
