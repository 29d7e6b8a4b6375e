"""Scaling projection neurons: hooks and baked weights agree, undo themselves and prove their effect."""

from __future__ import annotations

import copy

import pytest
import tiny as t
import torch
from safetensors.torch import save_file

from harness.errors import InputError, ProofError
from harness.models import load_model, weights_hash
from harness.projections import PROJECTION_SITES, projection_parts
from plugins.culnig_baking import bake, baked, scaling
from plugins.culnig_sets import load, members, overlap, random_like, save, size

IDS = t.tokens(12, seed=9)


def sites_of(name):
    return PROJECTION_SITES if name not in ("gpt2", "gpt_neox") else ("q", "k", "v")


def some(model, sites, share=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    widths = {site: part.width for site, part in projection_parts(model, sites)[0].items()}
    return {site: torch.rand(t.LAYERS, widths[site], generator=generator) < share for site in sites}


@pytest.mark.parametrize("name", t.ARCHITECTURES)
@pytest.mark.parametrize("factor", [0.0, 2.0, 0.3])
def test_baked_weights_equal_the_hooks(tiny, name, factor):
    model = tiny(name)
    base = t.logits(model, IDS)
    for sites in (sites_of(name), *((site,) for site in sites_of(name))):
        masks, changed = some(model, sites), copy.deepcopy(model)
        with scaling(model, masks, factor) as effect:
            hooked = t.logits(model, IDS)
        bake(changed, masks, factor)
        torch.testing.assert_close(t.logits(changed, IDS), hooked, rtol=0, atol=1e-5 * float(base.abs().max()))
        assert effect.largest > 0 and not torch.allclose(hooked, base, atol=1e-4)
    assert torch.equal(t.logits(model, IDS), base)


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gpt2", "gpt_neox"])
def test_only_the_chosen_outputs_change(tiny, name):
    model, site = copy.deepcopy(tiny(name)), "v"
    masks = some(model, [site], share=0.2)
    before = read(model, site)
    bake(model, masks, 0.0)
    # The first layer's inputs are the same before and after; deeper ones follow from them.
    after, chosen = read(model, site), masks[site][0]
    assert not after[:, chosen].any()
    torch.testing.assert_close(after[:, ~chosen], before[:, ~chosen], rtol=0, atol=0)


def read(model, site):
    part, kept = projection_parts(model, [site])[0][site], []
    handle = part.module.register_forward_hook(lambda _m, _a, output: kept.append(part.take(output)[0].detach()))
    t.logits(model, IDS)
    handle.remove()
    return kept[0]


def test_identities_and_proofs(tiny):
    model = copy.deepcopy(tiny("llama"))
    masks, base = some(model, ("gate", "q")), t.logits(model, IDS)
    empty = {site: torch.zeros_like(mask) for site, mask in masks.items()}
    for chosen, factor in ((masks, 1.0), (empty, 0.0)):
        with scaling(model, chosen, factor):
            assert torch.equal(t.logits(model, IDS), base)
    assert bake(model, masks, 1.0)["changed_weights"] == 0 and torch.equal(t.logits(model, IDS), base)
    with pytest.raises(ProofError, match="changed no weight"):
        bake(model, empty, 0.0)
    bake(model, masks, 0.0)
    with pytest.raises(ProofError, match="changed none"), scaling(model, masks, 0.0):
        t.logits(model, IDS)
    with pytest.raises(RuntimeError, match="stop"), scaling(model, masks, 2.0):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks for module in model.modules())


def test_a_set_of_another_shape_is_refused(tiny):
    with pytest.raises(InputError, match="gate are of 3 layers x 5"):
        bake(tiny("llama"), {"gate": torch.ones(3, 5, dtype=torch.bool)}, 0.0)
    with pytest.raises(InputError, match="has no gate"):
        bake(tiny("gpt2"), {"gate": torch.ones(3, 48, dtype=torch.bool)}, 0.0)


def test_a_baked_folder_serves_the_intervention(tiny, folder, stance_cache):
    masks = some(tiny("phi3"), PROJECTION_SITES)
    path = baked(folder("phi3"), masks, 2.0)
    with scaling(tiny("phi3"), masks, 2.0):
        hooked = t.logits(tiny("phi3"), IDS)
    torch.testing.assert_close(t.logits(load_model(path, torch.float32), IDS), hooked, rtol=0, atol=1e-5)
    assert baked(folder("phi3"), masks, 2.0) == path != baked(folder("phi3"), masks, 0.0)
    assert len(list((stance_cache / "variants").iterdir())) == 2


def test_random_sets_match_layer_by_layer_and_stay_outside(tiny):
    masks = some(tiny("llama"), PROJECTION_SITES)
    masks["v"][1] = True  # a full layer leaves nothing outside
    drawn = [random_like(masks, seed) for seed in range(3)]
    for one in drawn:
        for site, mask in masks.items():
            assert torch.equal(one[site].sum(1), mask.sum(1))
            assert not (one[site] & mask)[[0, 2]].any()
        assert torch.equal(one["v"][1], masks["v"][1])
    assert members(drawn[0]) == members(random_like(masks, 0)) != members(drawn[1])


def test_overlap_by_hand():
    one = {"q": torch.tensor([[True, True, False]]), "v": torch.tensor([[True]])}
    other = {"q": torch.tensor([[True, False, True]]), "v": torch.tensor([[False]])}
    assert size(one) == 3 and overlap(one, other) == (1, 0.25)
    nothing = {site: torch.zeros_like(mask) for site, mask in one.items()}
    assert overlap(nothing, nothing) == (0, 1.0) and overlap(one, nothing) == (0, 0.0)
    with pytest.raises(InputError, match="different sites"):
        overlap(one, {"q": one["q"]})


def test_sets_on_disk_know_their_model(tiny, folder, tmp_path):
    masks, mine = some(tiny("llama"), ("gate", "v")), weights_hash(folder("llama"))
    save(masks, tmp_path / "a.safetensors", mine)
    assert members(load(tmp_path / "a.safetensors", mine)) == members(masks)
    with pytest.raises(InputError, match="Localise on this model"):
        load(tmp_path / "a.safetensors", weights_hash(folder("qwen2")))
    with pytest.raises(InputError, match="There is no neuron file"):
        load(tmp_path / "b.safetensors", mine)
    save_file({"gate": torch.zeros(2)}, tmp_path / "c.safetensors")
    with pytest.raises(InputError, match="has format None"):
        load(tmp_path / "c.safetensors", mine)
