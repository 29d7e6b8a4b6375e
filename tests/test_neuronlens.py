from __future__ import annotations

import copy
import math
import random
import re
from pathlib import Path

import pytest
import tiny as t
import torch
from scipy.stats import kstest, kurtosis, skew

from harness.engines.gates import Gate
from harness.errors import InputError, ProofError
from harness.interventions import Op, applying
from harness.neurons import Neurons
from harness.sites import SITES, decoder_layers, mlps, width
from plugins.neuronlens import INSIDE, Ranges, d_prime, gate_numbers, masking, salient
from plugins.neuronlens_diagnostics import firing, last_tokens, overlap, overlaps, shape
from plugins.neuronlens_moments import Moments, Place, fit, rest_of

CONCEPTS = {
    "a": [t.tokens(length, seed=length) for length in (5, 11, 3, 8, 11, 1)],
    "b": [t.tokens(length, seed=20 + length) for length in (4, 9, 2, 7)],
    "c": [t.tokens(length, seed=40 + length) for length in (6, 10, 8)],
}
IDS = t.tokens(11, seed=7)
PAGE = Path(__file__).parents[1] / "docs" / "methods" / "neuronlens.md"
everywhere = pytest.mark.parametrize("name", t.ARCHITECTURES)
every_site = pytest.mark.parametrize("site", SITES)


@pytest.fixture(scope="module")
def double(tiny):
    return lambda name: copy.deepcopy(tiny(name)).double()


def here(site_width: int, layers: int = 1, layer: int = 0) -> Place:
    return Place("resid_post", layer, layers, site_width, "m")


def of(rows: list[list[float]]) -> Moments:
    values = torch.tensor(rows, dtype=torch.float64)
    return Moments.of(values, here(values.shape[1]))


def every(moments: Moments) -> Neurons:
    return salient(moments, 1.0)


def chosen(mask: list[int]) -> Neurons:
    return Neurons(torch.tensor([mask], dtype=torch.bool), "resid_post", "m")


def ready(model, site: str = "resid_post", tau: float = 2.5, share: float = 0.3, layer: int = -1) -> Ranges:
    moments = fit(model, CONCEPTS, Place.of(model, "m", site, layer))
    return Ranges(moments["a"], salient(moments["a"], share), tau, rest_of("a", moments))


def read(model, site: str, layer: int, ids: list[int]) -> torch.Tensor:
    """[s, n], by a hook of the test's own."""
    seen: list[torch.Tensor] = []

    def keep(_module, args, out):
        out = out[0] if isinstance(out, tuple) else out
        seen.append((args[0] if site == "mlp_act" else out)[0])

    module = decoder_layers(model)[layer] if site == "resid_post" else mlps(model)[layer].down.module
    handle = module.register_forward_hook(keep)
    t.logits(model, ids)
    handle.remove()
    return seen[0]


def close(found: Moments, wanted: Moments, rtol: float = 1e-9) -> None:
    """Within `rtol` of the values' size, since means and odd powers may lie near 0."""
    assert (found.count, found.place) == (wanted.count, wanted.place)
    for field in ("mean", "size", "sigma", "squares", "cubes", "fourths"):
        one, other = getattr(found, field), getattr(wanted, field)
        torch.testing.assert_close(
            one, other, rtol=rtol, atol=rtol * float(other.abs().max()), msg=lambda m, f=field: f + m
        )


# Identities


@everywhere
@every_site
def test_an_infinite_tau_is_the_full_mask(tiny, name, site):
    model = tiny(name)
    ranges = ready(model, site, math.inf)
    with applying(model, ranges.neurons, Op(scale=0.0)):
        full = t.logits(model, IDS)
    assert not torch.allclose(full, t.logits(model, IDS), atol=1e-3)
    for inside in ("zero", "damp"):
        with masking(model, ranges, inside):
            assert torch.equal(t.logits(model, IDS), full)
    with masking(model, ready(model, site, 1.0)):
        assert not torch.allclose(t.logits(model, IDS), full, atol=1e-3)


@everywhere
@pytest.mark.parametrize("inside", INSIDE)
def test_tau_0_and_p_0_are_the_base(tiny, name, inside):
    model = tiny(name)
    base = t.logits(model, IDS)
    for ranges in (ready(model, tau=0.0), ready(model, share=0.0), ready(model, tau=0.0, share=1.0)):
        with masking(model, ranges, inside) as effect:
            assert torch.equal(t.logits(model, IDS), base)
        assert effect.largest == 0.0
    assert len(ready(model, share=0.0).neurons) == 0


def test_a_range_of_tau_0_leaves_even_the_mean_and_any_other_takes_it():
    moments = of([[2.0, -1.0], [2.0, 3.0]])
    a = moments.mean[None]
    assert torch.equal(Ranges(moments, every(moments), 0.0).replaced(a), a)
    empty = Ranges(moments, every(moments), 0.0)
    assert not empty.contains(a).any()
    assert empty.low.tolist() == [math.inf, math.inf] and empty.high.tolist() == [-math.inf, -math.inf]
    assert gate_numbers(empty).inside.tolist() == [1.0, 1.0]
    for inside, wanted in (("zero", [0.0, 0.0]), ("damp", [0.0, 0.0])):
        assert Ranges(moments, every(moments), 1e-6).replaced(a, inside).tolist() == [wanted]


@everywhere
@every_site
def test_padding_and_batch_order_fit_the_same_ranges(double, name, site):
    model = double(name)
    place = Place.of(model, "m", site)
    mixed = {concept: random.Random(0).sample(some, len(some)) for concept, some in reversed(CONCEPTS.items())}
    wanted = fit(model, CONCEPTS, place)
    others = {
        "left": fit(model, CONCEPTS, place, left=True),
        "alone": fit(model, CONCEPTS, place, batch_tokens=1),
        "mixed": fit(model, mixed, place, batch_tokens=24),
        "left, small batches": fit(model, mixed, place, batch_tokens=24, left=True),
    }
    for found in others.values():
        for concept, moments in wanted.items():
            close(found[concept], moments, 1e-4)  # the norms compute in float32
            one, other = (Ranges(m, salient(m)) for m in (found[concept], moments))
            torch.testing.assert_close((one.low, one.high), (other.low, other.high), rtol=1e-4, atol=1e-4)
    cut = fit(model, {concept: [ids[:-1] or ids for ids in some] for concept, some in CONCEPTS.items()}, place)
    assert not torch.allclose(cut["a"].mean, wanted["a"].mean, rtol=0.01)


@everywhere
@every_site
def test_leaving_the_block_undoes_the_mask(tiny, name, site):
    model = tiny(name)
    base, ranges = t.logits(model, IDS), ready(model, site)
    for inside in INSIDE:
        with masking(model, ranges, inside) as effect:
            assert not torch.equal(t.logits(model, IDS), base)
        assert effect.largest > 0 and torch.equal(t.logits(model, IDS), base)
    with pytest.raises(KeyError), masking(model, ranges):
        raise KeyError
    assert torch.equal(t.logits(model, IDS), base)


# Numbers worked out by hand


def test_moments_by_hand():
    # 1 2 3 6: mean 3, off by -2 -1 0 3, so squares 14, cubes 18, fourths 98; with one sign changed |a| has another mean.
    rows = [[1.0, -1.0], [2.0, 1.0], [3.0, 1.0], [6.0, -1.0]]
    whole = of(rows)
    assert whole.mean.tolist() == [3.0, 0.0] and whole.size.tolist() == [3.0, 1.0]
    assert [x[0].item() for x in (whole.squares, whole.cubes, whole.fourths)] == [14.0, 18.0, 98.0]
    assert whole.sigma.tolist() == [3.5**0.5, 1.0]
    found = shape(whole, torch.tensor(rows))
    assert found.skew.tolist() == pytest.approx([4.5 / 3.5**1.5, 0.0])
    assert found.kurtosis.tolist() == pytest.approx([24.5 / 3.5**2 - 3, -2.0])
    for cut in (1, 2, 3):
        close(of(rows[:cut]) + of(rows[cut:]), whole)


def test_merging_keeps_its_digits_where_the_mean_is_large():
    values = torch.rand(300, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    far = (values + 2.0**20).split([1, 9, 50, 240])
    found = Moments.of(far[0], here(5))
    for part in far[1:]:
        found = found + Moments.of(part, here(5))
    torch.testing.assert_close(
        shape(found, values).kurtosis, torch.from_numpy(kurtosis(values.numpy())), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(shape(found, values).skew, torch.from_numpy(skew(values.numpy())), rtol=1e-6, atol=0)


def test_saliency_by_hand():
    concept = of([[1.0, -9.0, 4.0, 2.0], [3.0, 9.0, 4.0, 2.0]])  # mean |a| 2 9 4 2; mean 2 0 4 2; variance 1 81 0 0
    rest = of([[5.0, -1.0, 4.0, 3.0], [9.0, 1.0, 4.0, 3.0]])  # mean 7 0 4 3; variance 4 1 0 0
    assert d_prime(concept, rest).tolist() == pytest.approx([10**0.5, 0.0, 0.0, math.inf])
    sets = {
        "half by size": (salient(concept, 0.5), [0, 1, 1, 0]),
        "half by d'": (salient(concept, 0.5, rest), [1, 0, 0, 1]),
        "ties go to the first": (salient(concept, 0.75), [1, 1, 1, 0]),
        "at least one": (salient(concept, 0.01), [0, 1, 0, 0]),
        "none": (salient(concept, 0.0), [0, 0, 0, 0]),
        "all": (salient(concept, 1.0), [1, 1, 1, 1]),
    }
    assert {k: v.mask[0].int().tolist() for k, (v, _) in sets.items()} == {k: v for k, (_, v) in sets.items()}
    assert salient(concept).scores[0].tolist() == [2, 9, 4, 2]
    assert salient(of([[1.0] * 5000] * 2)).mask[0].nonzero().flatten().tolist() == list(range(1500))


def test_salient_dimensions_lie_in_the_layer_that_was_read():
    place = here(10, layers=3, layer=1)
    moments = Moments.of(torch.arange(20.0).view(2, 10), place)
    neurons = salient(moments)
    assert neurons.per_layer == [0, 3, 0] and neurons.indices(1).tolist() == [7, 8, 9]
    assert Ranges(moments, neurons).members.nonzero().flatten().tolist() == [7, 8, 9]
    controls = [neurons.random_like(seed, exclude=neurons) for seed in (0, 0, 1)]
    assert all(c.per_layer == [0, 3, 0] and len(c & neurons) == 0 for c in controls)
    assert torch.equal(controls[0].mask, controls[1].mask) and not torch.equal(controls[0].mask, controls[2].mask)
    assert all(Ranges(moments, c).members.sum() == 3 for c in controls)


def test_the_complement_counts_every_sequence_once():
    moments = {"a": of([[100.0], [100.0]]), "b": of([[1.0], [2.0], [3.0]]), "c": of([[6.0]])}
    close(rest_of("a", moments), of([[1.0], [2.0], [3.0], [6.0]]))
    close(rest_of("b", moments), of([[100.0], [100.0], [6.0]]))


def test_masks_by_hand():
    # Mean 4, sigma 2, tau 1.5: from 1 to 7. The second dimension has no range.
    moments, rest = of([[2.0, 2.0], [6.0, 6.0]]), of([[-3.0, 0.0], [1.0, 0.0]])
    ranges = Ranges(moments, chosen([1, 0]), 1.5, rest)
    a = torch.tensor([[x, x] for x in (0.9, 1.0, 4.0, 5.5, 7.0, 7.1)], dtype=torch.float64)
    wanted = {
        "zero": [0.9, 0, 0, 0, 0, 7.1],
        "damp": [0.9, 0.125, 0, 5.5 * 0.125 * 0.5, 7 * 0.125, 7.1],
        "mean": [0.9, 4, 4, 4, 4, 7.1],
        "rest": [0.9, -1, -1, -1, -1, 7.1],
    }
    assert ranges.contains(a).tolist() == [[inside, False] for inside in (False, True, True, True, True, False)]
    for inside in INSIDE:
        found = ranges.replaced(a, inside)
        assert found[:, 0].tolist() == pytest.approx(wanted[inside]) and torch.equal(found[:, 1], a[:, 1])
    assert ranges.replaced(a.to(torch.bfloat16)).dtype == torch.bfloat16
    numbers = gate_numbers(ranges)
    assert [x.tolist() for x in (numbers.low, numbers.high, numbers.inside)] == [
        [1.0, math.inf],
        [7.0, -math.inf],
        [0.0, 1.0],
    ]


def test_ends_are_not_rounded_to_the_models_dtype():
    ranges = Ranges(of([[1.001], [1.003]]), chosen([1]), 1.0)  # in bfloat16 both ends would round to 1
    assert not ranges.contains(torch.tensor([[1.0]], dtype=torch.bfloat16))
    assert ranges.contains(torch.tensor([[1.002]]))


def test_overlap_by_hand():
    # tau 1. a: 0..2, 0..2, 5 alone, no range; b: 1..5, 3..4, 5 alone, 0..2.
    a = Ranges(of([[0.0, 0, 5, 0], [2.0, 2, 5, 2]]), chosen([1, 1, 1, 0]), 1.0)
    b = Ranges(of([[1.0, 3, 5, 0], [5.0, 4, 5, 2]]), chosen([1, 1, 1, 1]), 1.0)
    found = overlap(a, b)
    assert found.shared.tolist() == [True, True, True, False]
    assert found.ratios.tolist() == pytest.approx([0.2, 0.0, 1.0, 0.0])
    assert found.mean == pytest.approx(0.4) == overlap(b, a).mean
    assert overlap(a, a).mean == 1.0
    full = [Ranges(r.concept, r.neurons, math.inf) for r in (a, b)]
    assert overlap(*full).mean == 1.0 and overlap(a, full[1]).mean == 0.0
    empty = Ranges(a.concept, a.neurons, 0.0)
    assert overlap(empty, empty).mean == 0.0 and overlap(empty, b).mean == 0.0
    assert math.isnan(overlap(a, Ranges(b.concept, chosen([0, 0, 0, 1]), 1.0)).mean)
    assert set(overlaps({"a": a, "b": b, "c": a})) == {("a", "b"), ("a", "c"), ("b", "c")}


def test_two_and_a_half_deviations_hold_a_normal_distributions_share():
    values = torch.randn(20000, 4, generator=torch.Generator().manual_seed(0))
    moments = Moments.of(values, here(4))
    share = Ranges(moments, every(moments)).contains(values).double().mean().item()
    assert share == pytest.approx(math.erf(2.5 / 2**0.5), abs=0.001)


# The naive loops


@everywhere
@every_site
def test_moments_equal_the_naive_ones(double, name, site):
    model = double(name)
    for layer in (0, -1):
        place = Place.of(model, "m", site, layer)
        assert place.layer == layer % t.LAYERS
        for concept, found in fit(model, CONCEPTS, place, batch_tokens=24).items():
            values = torch.stack([read(model, site, layer, ids)[-1] for ids in CONCEPTS[concept]])
            torch.testing.assert_close(found.mean, values.mean(0), rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(found.size, values.abs().mean(0), rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(found.sigma, values.std(0, correction=0), rtol=1e-4, atol=1e-4)
            assert found.count == len(values) and found.mean.dtype == torch.float64


@everywhere
@pytest.mark.parametrize("inside", INSIDE)
def test_the_masked_model_equals_one_masked_value_by_value(tiny, name, inside):
    model, last = tiny(name), t.LAYERS - 1
    ranges = ready(model, tau=1.2, share=0.5)
    mean, sigma = ranges.concept.mean.tolist(), ranges.concept.sigma.tolist()
    assert ranges.rest is not None
    rest, changes = ranges.rest.mean.tolist(), []

    def by_hand(_module, _args, out):
        stream = out[0] if isinstance(out, tuple) else out
        new = stream.clone()
        for position in range(stream.shape[1]):
            for j in ranges.neurons.indices(last).tolist():
                a = float(stream[0, position, j])
                if abs(a - mean[j]) <= 1.2 * sigma[j]:
                    damped = a * 0.125 * abs(a - mean[j]) / (1.2 * sigma[j])
                    new[0, position, j] = {"zero": 0.0, "damp": damped, "mean": mean[j], "rest": rest[j]}[inside]
                    changes.append(abs(float(new[0, position, j]) - a))
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = decoder_layers(model)[last].register_forward_hook(by_hand)
    wanted = t.logits(model, IDS)
    handle.remove()
    with masking(model, ranges, inside) as effect:
        torch.testing.assert_close(t.logits(model, IDS), wanted, rtol=1e-4, atol=1e-4)
    members = len(ranges.neurons)
    assert 0 < len(changes) < members * len(IDS) == effect.values
    assert effect.largest == pytest.approx(max(changes), rel=1e-4)


@everywhere
def test_firing_equals_the_naive_count_of_real_positions(double, name):
    model = double(name)
    ranges = ready(model, tau=1.0)
    low, high, members = ranges.low, ranges.high, ranges.members
    for concept in ("a", "b"):
        values = torch.cat([read(model, "resid_post", -1, ids) for ids in CONCEPTS[concept]])
        count = ((values >= low) & (values <= high)).sum(0)
        found = firing(model, ranges, CONCEPTS[concept], batch_tokens=24)
        assert found.positions == len(values) == sum(map(len, CONCEPTS[concept]))
        assert torch.equal((found.rates * found.positions).round().long(), count)
        assert found.overall == pytest.approx(float((count / len(values))[members].mean()), abs=1e-6)
        assert 0 < found.overall < 1 and not found.rates[~members].any()
    for tau, rate in ((0.0, 0.0), (math.inf, 1.0)):
        assert firing(model, Ranges(ranges.concept, ranges.neurons, tau), CONCEPTS["b"]).overall == rate
    assert firing(model, ready(model, share=0.0), CONCEPTS["b"]).overall == 0.0


def test_last_tokens_come_in_the_order_given(double):
    model = double("llama")
    place = Place.of(model, "m", layer=1)
    wanted = torch.stack([read(model, "resid_post", 1, ids)[-1] for ids in CONCEPTS["a"]])
    for batch_tokens in (1, 24, 2048):
        found = last_tokens(model, CONCEPTS["a"], place, batch_tokens)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


def test_shape_equals_scipys_dimension_by_dimension():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    values[:, 1] = values[:, 1].exp()
    values[:, 2] = 0.3
    found = shape(Moments.of(values, here(4)), values)
    for j in (0, 1, 3):
        x = values[:, j].numpy()
        assert found.skew[j].item() == pytest.approx(skew(x)) and found.kurtosis[j].item() == pytest.approx(kurtosis(x))
        assert found.normal[j].item() == pytest.approx(kstest(x, "norm", args=(x.mean(), x.std())).pvalue)
    assert all(math.isnan(x[2]) for x in (found.skew, found.kurtosis, found.normal))
    still = torch.full((3, 2), 0.3)
    assert shape(Moments.of(still, here(2)), still).normal.isnan().all()


def test_p_of_normal_values_is_too_large_and_of_others_small():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(100, 200, generator=generator)
    p = shape(Moments.of(normal, here(200)), normal).normal
    assert p.mean() > 0.65 and (p < 0.05).double().mean() < 0.01  # a test of known parameters: 0.5 and 0.05
    skewed = torch.rand(400, 20, generator=generator).log().neg()
    assert (shape(Moments.of(skewed, here(20)), skewed).normal < 1e-3).all()


@pytest.mark.parametrize("tau", [0.0, 1.0, math.inf])
def test_a_gate_of_the_static_numbers_does_what_the_mask_does(tau):
    values = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    moments = Moments.of(values, here(6))
    ranges = Ranges(moments, salient(moments, 0.5), tau)
    gate, numbers = Gate(6, 0, False, values), gate_numbers(ranges)
    for name in ("low", "high", "inside"):
        getattr(gate, name).copy_(getattr(numbers, name))
    gate.used = gate.ranged = True
    assert torch.equal(gate(values), ranges.replaced(values))
    assert (not torch.equal(gate(values), values)) == (tau > 0)


def test_advance_counts_the_sequences(tiny):
    done: list[int] = []
    fit(tiny("llama"), CONCEPTS, Place.of(tiny("llama"), "m"), batch_tokens=24, advance=done.append)
    assert sum(done) == sum(map(len, CONCEPTS.values())) and len(done) > 1


def test_the_page_shows_what_works(folder, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.setattr("harness.models.resolve", lambda _name: folder("llama"))
    names: dict = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert names["effect"].largest > 0 and names["logits"].isfinite().all()
    printed = capsys.readouterr().out
    assert len(re.findall(r"fires on \w+ \d", printed)) == 2 and "overlap" in printed and "p-values" in printed


# Refusals


def test_a_mask_that_changes_nothing_is_refused(tiny):
    model = tiny("llama")
    place = Place.of(model, "m")
    far = Moments.of(1e6 + torch.arange(2 * t.HIDDEN).view(2, t.HIDDEN).double(), place)
    for inside in ("zero", "damp", "mean"):
        with pytest.raises(ProofError, match="changed none"), masking(model, Ranges(far, salient(far)), inside):
            t.logits(model, IDS)
    with masking(model, Ranges(far, salient(far))) as effect:
        pass
    assert effect.values == 0
    with masking(model, Ranges(far, salient(far, 0.0))) as effect:
        t.logits(model, IDS)
    assert effect.values == 0


def test_a_place_that_is_not_there_is_refused(tiny):
    model = tiny("llama")
    for layer in (t.LAYERS, -t.LAYERS - 1):
        with pytest.raises(InputError, match=f"no layer {layer}; expected 0 to {t.LAYERS - 1}"):
            Place.of(model, "m", layer=layer)
    with pytest.raises(InputError, match="no site 'gate'"):
        Place.of(model, "m", "gate")
    assert Place.of(model, "m", "mlp_act", 1) == Place("mlp_act", 1, t.LAYERS, width(model, "mlp_act"), "m")


def test_wrong_sequences_are_refused(tiny):
    model = tiny("llama")
    place = Place.of(model, "m")
    for concepts, match in (
        ({}, "No concepts"),
        ({"a": CONCEPTS["a"], "b": [[5]]}, "Fewer than two sequences for b;"),
        ({"a": [[5], []]}, "without tokens"),
    ):
        with pytest.raises(InputError, match=match):
            fit(model, concepts, place)
    for sequences in ([], [[5], []]):
        with pytest.raises(InputError, match="without tokens"):
            last_tokens(model, sequences, place)
        with pytest.raises(InputError, match="without tokens"):
            firing(model, ready(model), sequences)


def test_another_model_is_refused(tiny):
    model, deeper = tiny("llama"), t.build("llama", num_hidden_layers=t.LAYERS + 1)
    ranges = ready(model)
    with pytest.raises(InputError, match="come from another model"), masking(deeper, ranges):
        pass
    for run in (lambda: fit(deeper, CONCEPTS, ranges.concept.place), lambda: firing(deeper, ranges, CONCEPTS["a"])):
        with pytest.raises(InputError, match="come from another model"):
            run()


def test_activations_that_are_not_finite_are_refused(tiny):
    model = copy.deepcopy(tiny("llama"))
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(math.inf)
    with pytest.raises(InputError, match="not all finite"):
        fit(model, CONCEPTS, Place.of(model, "m"))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_share_or_tau_out_of_range_is_refused(value):
    moments = of([[1.0], [2.0]])
    with pytest.raises(InputError, match="share is"):
        salient(moments, value)
    if not value > 0:
        with pytest.raises(InputError, match="tau is"):
            Ranges(moments, every(moments), value)


def test_neurons_and_moments_of_another_place_are_refused():
    place = here(2, layers=2, layer=1)
    moments, other = (Moments.of(torch.eye(2), p) for p in (place, here(2, layers=2, layer=0)))
    good = salient(moments)
    for neurons in (
        salient(other),
        Neurons(good.mask, "mlp_out", "m"),
        Neurons(good.mask, "resid_post", "another"),
        Neurons(torch.ones(2, 3, dtype=torch.bool), "resid_post", "m"),
    ):
        with pytest.raises(InputError, match="Choose them by `salient`"):
            Ranges(moments, neurons)
    for mix in (
        lambda: moments + other,
        lambda: d_prime(moments, other),
        lambda: salient(moments, 0.5, other),
        lambda: Ranges(moments, good, rest=other),
        lambda: overlap(Ranges(moments, good), Ranges(other, salient(other))),
    ):
        with pytest.raises(InputError, match="fit both at one place"):
            mix()


def test_an_unknown_replacement_or_complement_is_refused(tiny):
    model = tiny("llama")
    ranges = ready(model)
    bare = Ranges(ranges.concept, ranges.neurons)
    for inside, which in (("half", ranges), ("rest", bare)):
        with pytest.raises(InputError, match=f"inside is '{inside}'"), masking(model, which, inside):
            pass
        with pytest.raises(InputError, match=f"inside is '{inside}'"):
            gate_numbers(which, inside)
    for inside in ("damp", "mean", "rest"):
        with pytest.raises(InputError, match="a gate cannot carry out"):
            gate_numbers(ranges, inside)
    for concept, moments in (("d", {"a": ranges.concept}), ("a", {"a": ranges.concept})):
        with pytest.raises(InputError, match="at least one other"):
            rest_of(concept, moments)
    with pytest.raises(InputError, match="make no pair"):
        overlaps({"a": ranges})
    with pytest.raises(InputError, match="that the moments are of"):
        shape(ranges.concept, torch.zeros(3, t.HIDDEN))
