from __future__ import annotations

import pytest
import tiny as t
import torch
import transformers

from harness.activations import visiting
from harness.errors import InputError
from harness.sites import SITES, check_site, decoder_layers, mlps, width

pytestmark = pytest.mark.filterwarnings("ignore")
EXPERTS = {
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "vocab_size": t.VOCAB,
    "pad_token_id": t.PAD,
}


@pytest.mark.parametrize("name", t.ARCHITECTURES)
def test_layers_and_widths(tiny, name):
    model = tiny(name)
    assert len(decoder_layers(model)) == len(mlps(model)) == t.LAYERS
    assert (width(model, "mlp_act"), width(model, "mlp_out")) == (t.INTERMEDIATE, t.HIDDEN)


@pytest.mark.parametrize("name", t.ARCHITECTURES)
def test_every_layer_is_visited_with_its_sites_width(tiny, name):
    model = tiny(name)
    for site in SITES:
        seen = {}
        with visiting(model, site, lambda layer, a, seen=seen: seen.update({layer: tuple(a.shape)})):
            t.logits(model, t.tokens(7))
        assert seen == dict.fromkeys(range(t.LAYERS), (1, 7, width(model, site)))


@pytest.mark.parametrize("name", t.ARCHITECTURES)
def test_weights_are_outputs_by_inputs(tiny, name):
    model = tiny(name)
    for mlp in mlps(model):
        assert mlp.down.weight.shape == (t.HIDDEN, t.INTERMEDIATE)
        assert all(up.weight.shape == (t.INTERMEDIATE * mlp.rows(up), t.HIDDEN) for up in mlp.ups)


def test_rows_per_neuron_is_two_where_gate_and_up_are_fused(tiny):
    rows = {
        name: [mlps(tiny(name))[0].rows(up) for up in mlps(tiny(name))[0].ups] for name in ("llama", "phi3", "gpt2")
    }
    assert rows == {"llama": [1, 1], "phi3": [2], "gpt2": [1]}


def test_mlp_act_of_llama_is_gated_activation(tiny):
    model, entering, acts = tiny("llama"), {}, {}
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _m, args, n=n: entering.update({n: args[0]}))
        for n, layer in enumerate(decoder_layers(model))
    ]
    with visiting(model, "mlp_act", lambda layer, a: acts.update({layer: a})):
        t.logits(model, t.tokens(9))
    for hook in hooks:
        hook.remove()
    for n, layer in enumerate(decoder_layers(model)):
        x, mlp = entering[n], layer.mlp
        by_hand = torch.nn.functional.silu(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T)
        torch.testing.assert_close(acts[n], by_hand)


def test_mlp_out_of_gemma_is_taken_before_the_norm_that_follows(tiny):
    model, before, outs = tiny("gemma2"), {}, {}
    hooks = [
        layer.post_feedforward_layernorm.register_forward_pre_hook(lambda _m, args, n=n: before.update({n: args[0]}))
        for n, layer in enumerate(decoder_layers(model))
    ]
    with visiting(model, "mlp_out", lambda layer, a: outs.update({layer: a})):
        t.logits(model, t.tokens(9))
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(before[n], outs[n]) for n in range(t.LAYERS))


def test_unknown_site_is_named_with_the_known_ones():
    with pytest.raises(InputError, match=r"no site 'attention'.*mlp_act, mlp_out"):
        check_site("attention")


def experts(name: str):
    small = t.SMALL | EXPERTS
    if name == "mixtral":
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**small, num_local_experts=4))
    if name == "qwen2_moe":
        more = {"num_experts": 4, "shared_expert_intermediate_size": 48}
        return transformers.Qwen2MoeForCausalLM(transformers.Qwen2MoeConfig(**small, **more))
    more = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0}
    return transformers.Glm4MoeForCausalLM(transformers.Glm4MoeConfig(**small, **more))


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "glm4_moe"])
def test_mixture_of_experts_is_refused(name):
    with pytest.raises(InputError, match="mixture of experts"):
        mlps(experts(name))


def test_encoder_decoder_is_refused():
    config = transformers.T5Config(vocab_size=t.VOCAB, d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4)
    with pytest.raises(InputError, match="a decoder has one"):
        mlps(transformers.T5ForConditionalGeneration(config))


def test_encoder_decoder_with_two_stacks_of_mlps_is_refused():
    side = {**t.SMALL, "vocab_size": t.VOCAB}
    config = transformers.T5GemmaConfig(encoder=side, decoder=side, vocab_size=t.VOCAB)
    with pytest.raises(InputError, match="has 2 lists"):
        mlps(transformers.T5GemmaForConditionalGeneration(config))
