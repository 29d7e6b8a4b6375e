from __future__ import annotations

import copy

import pytest
import tiny as t
import torch
from torch.nn.functional import linear, silu

from harness.activations import visiting
from harness.errors import InputError, ProofError
from harness.interventions import DonorPatch, Op, all_neurons, applying
from harness.neurons import Neurons
from harness.sites import MLP_SITES, SITES, decoder_layers, mlps, width

ZERO, SAME = Op(scale=0.0), Op(scale=1.0)
IDS = t.tokens(11)
everywhere = pytest.mark.parametrize("name", t.ARCHITECTURES)
every_site = pytest.mark.parametrize("site", SITES)
mlp_sites = pytest.mark.parametrize("site", MLP_SITES)


def patched(recipient, donor, neurons, ids=IDS):
    patch = DonorPatch(neurons)
    with patch.recording(donor):
        t.logits(donor, ids)
    with patch.replacing(recipient):
        out = t.logits(recipient, ids)
    patch.prove()
    return out


def no_neurons(model, site):
    return Neurons(torch.zeros(t.LAYERS, width(model, site), dtype=torch.bool), site, "m")


@everywhere
@every_site
def test_scaling_by_one_is_the_base(tiny, name, site):
    model = tiny(name)
    base = t.logits(model, IDS)
    with applying(model, t.some_neurons(model, site), SAME):
        assert torch.equal(t.logits(model, IDS), base)


@everywhere
@every_site
def test_leaving_the_block_undoes_the_intervention(tiny, name, site):
    model = tiny(name)
    base = t.logits(model, IDS)
    with applying(model, t.some_neurons(model, site), ZERO) as effect:
        assert not torch.allclose(t.logits(model, IDS), base, atol=1e-3)
    assert effect.largest > 0 and torch.equal(t.logits(model, IDS), base)


@every_site
def test_an_exception_inside_the_block_undoes_the_intervention_too(tiny, site):
    model = tiny("llama")
    base, neurons = t.logits(model, IDS), t.some_neurons(model, site)
    with pytest.raises(KeyError), applying(model, neurons, ZERO):
        raise KeyError
    assert torch.equal(t.logits(model, IDS), base)
    patch = DonorPatch(neurons)
    with patch.recording(t.with_other_mlps(model)):
        pass
    with pytest.raises(ProofError, match="run the donor first"), patch.replacing(model):
        t.logits(model, IDS)
    assert torch.equal(t.logits(model, IDS), base)


@everywhere
@mlp_sites
@pytest.mark.parametrize("op", [ZERO, Op(scale=1.7)], ids=str)
def test_scaling_equals_scaling_the_weights_of_the_down_projection(tiny, name, site, op):
    model = tiny(name)
    neurons, edited = t.some_neurons(model, site), copy.deepcopy(model)
    with torch.no_grad():
        for layer, mlp in enumerate(mlps(edited)):
            stored, index = mlp.down.module.weight, neurons.indices(layer)
            outputs_first = stored.T if name == "gpt2" else stored
            if site == "mlp_act":
                outputs_first[:, index] *= op.scale
            else:
                outputs_first[index] *= op.scale
                if mlp.down.module.bias is not None:
                    mlp.down.module.bias[index] *= op.scale
    with applying(model, neurons, op):
        torch.testing.assert_close(t.logits(model, IDS), t.logits(edited, IDS), atol=1e-4, rtol=1e-4)


@every_site
def test_scaling_nothing_is_the_base(tiny, site):
    model = tiny("llama")
    base = t.logits(model, IDS)
    with applying(model, no_neurons(model, site), ZERO) as effect:
        assert torch.equal(t.logits(model, IDS), base)
    assert effect.values == 0


@mlp_sites
def test_an_op_that_changes_nothing_is_refused(site):
    model = t.build("llama")
    neurons = t.some_neurons(model, site)
    with torch.no_grad():
        for mlp in mlps(model):
            for projection in (*mlp.ups, mlp.down):
                projection.weight.zero_()
    with pytest.raises(ProofError, match="changed none"), applying(model, neurons, ZERO):
        t.logits(model, IDS)


@pytest.mark.parametrize("shape", [(t.LAYERS - 1, t.HIDDEN), (t.LAYERS + 1, t.HIDDEN), (t.LAYERS, t.HIDDEN + 1)])
def test_neurons_of_another_shape_are_refused(tiny, shape):
    model, foreign = tiny("llama"), Neurons(torch.ones(shape, dtype=torch.bool), "mlp_out", "m")
    patch = DonorPatch(foreign)
    for block in (applying(model, foreign, ZERO), patch.recording(model), patch.replacing(model)):
        with pytest.raises(InputError, match="come from another model"), block:
            pass


@pytest.mark.parametrize(
    ("text", "op"),
    [
        ("zero", ZERO),
        ("scale=0.5", Op(scale=0.5)),
        ("scale=-2", Op(scale=-2.0)),
        ("constant=1.5", Op(scale=0.0, shift=1.5)),
        ("range=-1:2:0", Op(low=-1.0, high=2.0, inside=0.0)),
        ("range=-inf:0.5:0.25", Op(low=float("-inf"), high=0.5, inside=0.25)),
    ],
)
def test_ops_are_read_and_written_alike(text, op):
    assert Op.parse(text) == op and str(op) == text


@pytest.mark.parametrize(
    "text",
    [
        *["", "half", "scale", "scale=", "scale=x", "scale=nan", "scale=inf", "zero=1", "constant", "constant=inf"],
        *["range=1", "range=1:2", "range=2:1:0", "range=0:nan:0", "range=0:1:inf", "range=0:1:0:0"],
    ],
)
def test_an_unknown_op_is_refused(text):
    with pytest.raises(InputError, match="expected `zero`, `scale=X`"):
        Op.parse(text)


def test_what_each_op_makes_of_an_activation():
    a = torch.tensor([-3.0, -1.0, 0.0, 2.0])
    assert Op.parse("zero").apply(a).tolist() == [0, 0, 0, 0]
    assert Op.parse("scale=-2").apply(a).tolist() == [6, 2, 0, -4]
    assert Op.parse("constant=0.5").apply(a).tolist() == [0.5] * 4
    assert Op.parse("range=-1:0.5:0.5").apply(a).tolist() == [-3, -0.5, 0, 2]
    assert Op.parse("range=-inf:inf:0").apply(a).tolist() == ZERO.apply(a).tolist()
    assert Op(shift=1.0, low=0.0, high=1.0, inside=3.0).apply(a).tolist() == [-2, 0, 3, 3]


@pytest.mark.parametrize(
    ("text", "identity", "linear"),
    [
        ("scale=1", True, True),
        ("range=0:1:1", True, True),
        ("zero", False, True),
        ("constant=0", False, True),
        ("constant=2", False, False),
        ("range=0:0:0", False, False),
    ],
)
def test_which_ops_weights_can_carry(text, identity, linear):
    assert (Op.parse(text).identity, Op.parse(text).linear) == (identity, linear)


@everywhere
@every_site
@pytest.mark.parametrize("op", ["constant=0.7", "range=-0.2:0.3:0"])
def test_only_the_chosen_neurons_change(tiny, name, site, op):
    model, neurons, wanted, seen = tiny(name), t.some_neurons(tiny(name), site), Op.parse(op), {}
    with visiting(model, site, lambda layer, a: seen.update({layer: a.clone()})):
        t.logits(model, IDS)
    with applying(model, neurons, wanted), visiting(model, site, lambda layer, a: after.update({layer: a.clone()})):
        after: dict = {}
        t.logits(model, IDS)
    members = neurons.mask[0]
    assert torch.equal(after[0][..., ~members], seen[0][..., ~members])
    assert torch.equal(after[0][..., members], wanted.apply(seen[0][..., members]))


@everywhere
@every_site
def test_patching_no_neurons_is_the_recipient(tiny, name, site):
    model = tiny(name)
    out = patched(model, t.with_other_mlps(model), no_neurons(model, site))
    assert torch.equal(out, t.logits(model, IDS))


@everywhere
def test_patching_every_mlp_output_is_the_donor_where_the_rest_is_shared(tiny, name):
    model = tiny(name)
    donor = t.with_other_mlps(model)
    assert not torch.allclose(t.logits(model, IDS), t.logits(donor, IDS), atol=1e-2)
    out = patched(model, donor, all_neurons(t.LAYERS, t.HIDDEN, "mlp_out", "m"))
    assert torch.equal(out, t.logits(donor, IDS))


@everywhere
@every_site
def test_patching_a_model_into_itself_is_refused(tiny, name, site):
    model = tiny(name)
    with pytest.raises(ProofError, match="is the donor the recipient itself"):
        patched(model, copy.deepcopy(model), t.some_neurons(model, site))


def test_patched_activations_are_the_donors_and_the_others_are_not(tiny):
    model = tiny("qwen2")
    donor, neurons, seen = t.with_other_mlps(model), t.some_neurons(model, "mlp_act"), {}
    patch = DonorPatch(neurons)
    theirs = {}
    with patch.recording(donor), visiting(donor, "mlp_act", lambda n, a: theirs.update({n: a})):
        t.logits(donor, IDS)
    with patch.replacing(model), visiting(model, "mlp_act", lambda n, a: seen.update({n: a})):
        t.logits(model, IDS)
    for layer, mask in enumerate(neurons.mask):
        assert torch.equal(seen[layer][..., mask], theirs[layer][..., mask])
        assert not torch.isclose(seen[layer][..., ~mask], theirs[layer][..., ~mask]).all()


@mlp_sites
def test_partial_patch_of_llamas_last_layer_equals_the_one_computed_by_hand(tiny, site):
    model = tiny("llama")
    donor, last = t.with_other_mlps(model), t.LAYERS - 1
    neurons = t.some_neurons(model, site)
    neurons.mask[:last] = False
    chosen, entering = neurons.mask[last], {}

    for which in (model, donor):
        block = decoder_layers(which)[last]
        hook = block.post_attention_layernorm.register_forward_pre_hook(
            lambda _m, args, which=which: entering.update({which: args[0][0]})
        )
        t.logits(which, IDS)
        hook.remove()

    def mlp_act(which):
        block = decoder_layers(which)[last]
        x = block.post_attention_layernorm(entering[which])
        return silu(linear(x, block.mlp.gate_proj.weight)) * linear(x, block.mlp.up_proj.weight)

    down, donors_down = (decoder_layers(m)[last].mlp.down_proj.weight for m in (model, donor))
    with torch.no_grad():
        if site == "mlp_act":
            out = linear(torch.where(chosen, mlp_act(donor), mlp_act(model)), down)
        else:
            out = torch.where(chosen, linear(mlp_act(donor), donors_down), linear(mlp_act(model), down))
        by_hand = linear(model.model.norm(entering[model] + out), model.lm_head.weight)
    torch.testing.assert_close(patched(model, donor, neurons), by_hand, atol=1e-4, rtol=1e-4)


def test_donor_and_recipient_must_run_on_as_many_tokens(tiny):
    model = tiny("llama")
    donor, patch = t.with_other_mlps(model), DonorPatch(t.some_neurons(model, "mlp_out"))
    with patch.recording(donor):
        t.logits(donor, IDS)
    with pytest.raises(ProofError, match="Donor ran on"), patch.replacing(model):
        t.logits(model, IDS[:-1])
