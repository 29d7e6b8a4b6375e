"""Ranges per dimension served in vLLM's gates, against Torch hooks, on a tiny model in float32. One engine for the file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import tiny as t
import torch

from harness.engines import Settings
from harness.engines.torch import TorchEngine
from harness.errors import InputError, ProofError
from harness.interventions import ZERO
from harness.models import load_model, load_tokenizer
from harness.neurons import Neurons
from harness.ranges import RangeOp
from harness.sites import SITES
from plugins.neuronlens import Ranges, masking, range_op, salient
from plugins.neuronlens_moments import Moments, Place, fit, rest_of

pytestmark = pytest.mark.engine

WIDER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32, "num_attention_heads": 2}
CONCEPTS = {name: [t.tokens(n, seed=n + 50 * k) for n in range(4, 20)] for k, name in enumerate("ab")}
ASKED = [(t.tokens(n, seed=n), [20, 30, 40]) for n in (5, 17, 40)]


@pytest.fixture(scope="module")
def folder_of_wider(tmp_path_factory: pytest.TempPathFactory) -> str:
    return t.save(t.build("llama", **WIDER), tmp_path_factory.mktemp("wider"))


@pytest.fixture(scope="module")
def served(folder_of_wider: str) -> Iterator[Any]:
    pytest.importorskip("vllm")
    from harness.engines.vllm import VLLMEngine

    engine = VLLMEngine(folder_of_wider, Settings(dtype="float32", max_length=64))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def hooked(folder_of_wider: str) -> TorchEngine:
    return TorchEngine(load_model(folder_of_wider, torch.float32), load_tokenizer(folder_of_wider))


def ready(model: Any, site: str, tau: float = 1.0, share: float = 0.3, layer: int = -1) -> Ranges:
    moments = fit(model, CONCEPTS, Place.of(model, "m", site, layer))
    return Ranges(moments["a"], salient(moments["a"], share), tau, rest_of("a", moments))


def scores(engine: Any) -> torch.Tensor:
    return torch.tensor(engine.score_choices(ASKED))


def under(engine: Any, neurons: Neurons, op: Any) -> torch.Tensor:
    assert engine.intervene(neurons, op) > 0
    try:
        return scores(engine)
    finally:
        engine.intervene(None, ZERO)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("layer", [0, -1])
def test_the_range_mask_is_the_same_on_both_and_in_the_context_manager(served, hooked, site, layer):
    ranges, base = ready(hooked.model, site, layer=layer), scores(served)
    found = under(served, ranges.neurons, range_op(ranges))
    assert (found - base).abs().max() > 0.01
    torch.testing.assert_close(found, under(hooked, ranges.neurons, range_op(ranges)), atol=1e-3, rtol=0)
    with masking(hooked.model, ranges):
        torch.testing.assert_close(found, scores(hooked), atol=1e-3, rtol=0)
    assert torch.equal(scores(served), base)


@pytest.mark.parametrize("site", SITES)
def test_ranges_with_factors_of_their_own_over_all_layers_are_the_same_on_both(served, hooked, site):
    neurons = t.some_neurons(hooked.model, site, 0.5)
    generator = torch.Generator().manual_seed(0)
    centre, half, inside = (torch.randn(neurons.mask.shape, generator=generator) for _ in range(3))
    op = RangeOp(0.3 * centre - half.abs(), 0.3 * centre + half.abs(), inside)
    found, base = under(served, neurons, op), scores(served)
    torch.testing.assert_close(found, under(hooked, neurons, op), atol=1e-3, rtol=0)
    assert (found - base).abs().max() > 0.01


def test_an_infinite_tau_is_the_full_mask_and_tau_0_or_p_0_is_none(served, hooked):
    ranges, base = ready(hooked.model, "resid_post", math.inf), scores(served)
    full = under(served, ranges.neurons, ZERO)
    assert torch.equal(under(served, ranges.neurons, range_op(ranges)), full) and not torch.equal(full, base)
    for nothing in (ready(hooked.model, "resid_post", 0.0), ready(hooked.model, "resid_post", share=0.0)):
        assert served.intervene(nothing.neurons, range_op(nothing)) == 0.0
        assert torch.equal(scores(served), base)


def test_ranges_that_nothing_lies_in_and_those_of_another_shape_are_refused(served, hooked):
    place = Place.of(hooked.model, "m")
    far = Moments.of(1e6 + torch.arange(2 * place.width).view(2, -1).double(), place)
    ranges, base = Ranges(far, salient(far)), scores(served)
    with pytest.raises(ProofError, match="changed nothing"):
        served.intervene(ranges.neurons, range_op(ranges))
    wrong = RangeOp.of_layer(0, 2, torch.zeros(7), torch.ones(7), torch.zeros(7))
    with pytest.raises(InputError, match="Fit them on the model"):
        served.intervene(ranges.neurons, wrong)
    assert torch.equal(scores(served), base)
