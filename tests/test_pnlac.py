from __future__ import annotations

import copy
import re

import pytest
import tiny as t
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from harness.contrast import Contrast, Sequence, contrast, contrasts
from harness.errors import InputError, ProofError
from harness.sites import SITES
from plugins.pnlac import Localization, localize

DOWN = (".mlp.down_proj", ".mlp.dense_4h_to_h", ".mlp.c_proj")
PROMPTS = [Sequence(t.tokens(length, seed=length)) for length in (5, 11, 3, 8, 11, 1)]
COMPLETIONS = [Sequence(s.ids, start=len(s.ids) // 2) for s in PROMPTS]


@pytest.fixture(scope="module")
def pair(tiny):
    def made(name):
        base = copy.deepcopy(tiny(name)).double()
        return base, t.with_other_mlps(base)

    return made


def activations(model, site: str, ids: list[int]) -> torch.Tensor:
    """[l, s, n], by hooks of the test's own."""
    seen = []

    def keep(_module, args, out):
        out = out[0] if isinstance(out, tuple) else out
        seen.append((args[0] if site == "mlp_act" else out)[0])

    ends = r"\.\d+" if site == "resid_post" else "|".join(map(re.escape, DOWN))
    hooks = [
        module.register_forward_hook(keep) for name, module in model.named_modules() if re.search(f"({ends})$", name)
    ]
    t.logits(model, ids)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)


def with_adapter(base, folder):
    """A copy with a random adapter, saved in the folder, that can be switched off."""
    config = LoraConfig(r=4, target_modules=["down_proj", "q_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    get_peft_model(copy.deepcopy(base), config).save_pretrained(folder)
    adapted = copy.deepcopy(base)
    adapted.load_adapter(str(folder))
    return adapted


def naive(base, tuned, sequences: list[Sequence], site: str) -> tuple[torch.Tensor, torch.Tensor]:
    """R and its normalised form, token by token, one prompt at a time."""
    squares, tokens, values = 0.0, 0, []
    for sequence in sequences:
        of_base, of_tuned = (activations(model, site, sequence.ids) for model in (base, tuned))
        for position in range(sequence.start, len(sequence.ids)):
            squares = squares + (of_tuned[:, position] - of_base[:, position]) ** 2
            values.append(of_base[:, position])
            tokens += 1
    score = (squares / tokens).sqrt()
    return score, score / torch.stack(values).std(0, correction=0)


@pytest.mark.parametrize("name", t.ARCHITECTURES)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("sequences", [PROMPTS, COMPLETIONS], ids=["prompt", "completion"])
def test_scores_equal_the_naive_ones(pair, name, site, sequences):
    base, tuned = pair(name)
    score, normalized = naive(base, tuned, sequences, site)
    found = contrast(base, tuned, sequences, site, moments=True)
    torch.testing.assert_close(found.score, score, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.normalized, normalized, rtol=1e-5, atol=0)
    assert found.tokens == sum(len(s.ids) - s.start for s in sequences)
    assert score.shape == (t.LAYERS, t.INTERMEDIATE if site == "mlp_act" else t.HIDDEN)


@pytest.mark.parametrize("name", t.ARCHITECTURES)
def test_batching_padding_and_order_change_nothing(pair, name):
    base, tuned = pair(name)
    together = contrast(base, tuned, COMPLETIONS, "mlp_act", moments=True)
    alone = contrast(base, tuned, COMPLETIONS, "mlp_act", batch_tokens=1, moments=True)
    reversed_pairs = contrast(base, tuned, COMPLETIONS[::-1], "mlp_act", batch_tokens=24, moments=True)
    for other in (alone, reversed_pairs):
        for field in ("score", "normalized", "size"):
            torch.testing.assert_close(getattr(other, field), getattr(together, field), rtol=1e-6, atol=0)


def test_float32_models_give_the_float64_scores(pair):
    base, tuned = pair("llama")
    score, _ = naive(base, tuned, PROMPTS, "mlp_out")
    found = contrast(copy.deepcopy(base).float(), copy.deepcopy(tuned).float(), PROMPTS, "mlp_out")
    assert found.score.dtype == torch.float64
    torch.testing.assert_close(found.score, score, rtol=1e-4, atol=0)


def test_groups_that_share_batches_score_as_they_do_alone(pair):
    groups = {"a": PROMPTS[:2], "b": COMPLETIONS[2:5], "c": PROMPTS[5:]}
    together = contrasts(*pair("llama"), groups, "mlp_act", batch_tokens=24, moments=True)
    for name, sequences in groups.items():
        alone = contrast(*pair("llama"), sequences, "mlp_act", moments=True)
        assert together[name].tokens == alone.tokens
        torch.testing.assert_close(together[name].score, alone.score)
        torch.testing.assert_close(together[name].normalized, alone.normalized)


@pytest.mark.parametrize("adapter", [False, True], ids=["two models", "one model with an adapter"])
def test_several_devices_sum_what_one_does(pair, tmp_path, adapter):
    base, tuned = pair("llama")
    if adapter:
        base = tuned = with_adapter(base, tmp_path)
    told = []
    groups = {"a": PROMPTS, "b": COMPLETIONS}
    alone = contrasts(base, tuned, groups, "mlp_act", 24, moments=True)
    shared = contrasts(base, tuned, groups, "mlp_act", 24, told.append, moments=True, devices=["cpu", "cpu"])
    assert sum(told) == len(PROMPTS) + len(COMPLETIONS)
    for name, one in alone.items():
        assert shared[name].tokens == one.tokens
        torch.testing.assert_close(shared[name].sums, one.sums, rtol=1e-9, atol=1e-12)


def test_completions_and_prompts_score_differently(pair):
    base, tuned = pair("llama")
    scores = [contrast(base, tuned, sequences, "mlp_act").score for sequences in (PROMPTS, COMPLETIONS)]
    assert not torch.allclose(*scores, rtol=0.01)


def test_running_sums_by_hand():
    # One neuron over the tokens base 1, 2, 3 and tuned 1, 4, 7; one that never varies; one that is always 0.
    squared_difference, absolute = [20.0, 3.0, 3.0], [6.0, 0.9, 0.0]
    total, square = [6.0, 0.3 + 0.3 + 0.3, 0.0], [14.0, 0.3 * 0.3 + 0.3 * 0.3 + 0.3 * 0.3, 0.0]
    rows = torch.tensor([squared_difference, absolute, total, square], dtype=torch.float64)
    sums = Contrast(rows[:, None], tokens=3)
    expected = [(20 / 3) ** 0.5, 1.0, 1.0]
    torch.testing.assert_close(sums.score[0], torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(sums.normalized[0], torch.tensor([10**0.5, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(sums.size[0], torch.tensor([2.0, 0.3, 0.0], dtype=torch.float64))
    with pytest.raises(InputError, match="moments"):
        _ = Contrast(rows[:2, None], tokens=3).normalized


def test_selected_general_and_specific_by_hand():
    scores = {"a": torch.tensor([[4.0, 3.0], [2.0, 1.0]]), "b": torch.tensor([[1.0, 4.0], [3.0, 2.0]])}
    found = Localization("mlp_act", "m", 50.0, scores, torch.zeros(2, 2))
    sets = {
        "N_a": (found.selected("a"), [[1, 1], [0, 0]]),
        "N_b": (found.selected("b"), [[0, 1], [1, 0]]),
        "G": (found.general, [[0, 1], [0, 0]]),
        "P_a": (found.specific("a"), [[1, 0], [0, 0]]),
        "P_b": (found.specific("b"), [[0, 0], [1, 0]]),
    }
    assert {name: neurons.mask.int().tolist() for name, (neurons, _) in sets.items()} == {
        k: v for k, (_, v) in sets.items()
    }
    assert found.general.scores.tolist() == [[2.5, 3.5], [2.5, 1.5]]
    assert (found.general.site, found.general.model) == ("mlp_act", "m")


@pytest.mark.parametrize(("top", "count"), [(100.0, 10), (30.0, 3), (10.0, 1), (0.001, 1)])
def test_top_is_a_percentage_of_all_neurons_and_at_least_one(top, count):
    found = Localization("mlp_act", "m", top, {"a": torch.arange(10.0).view(2, 5)}, torch.zeros(2, 5))
    assert len(found.selected("a")) == count


def test_localize_makes_the_sets_of_its_topics(pair):
    base, tuned = pair("llama")
    prompts = {"a": PROMPTS[:3], "b": PROMPTS[3:]}
    found = localize(base, tuned, prompts, "mlp_act", "m", top=40.0)
    for topic, sequences in prompts.items():
        torch.testing.assert_close(found.scores[topic], naive(base, tuned, sequences, "mlp_act")[0], rtol=1e-5, atol=0)
    assert len(found.selected("a")) == round(0.4 * t.LAYERS * t.INTERMEDIATE)
    assert 0 < len(found.general) < len(found.selected("a"))
    assert len(found.general & found.specific("a")) == 0
    assert found.tokens == {"a": 19, "b": 20}


def test_localize_can_normalize(pair):
    base, tuned = pair("llama")
    found = localize(base, tuned, {"a": PROMPTS}, "mlp_act", "m", normalized=True)
    torch.testing.assert_close(found.scores["a"], naive(base, tuned, PROMPTS, "mlp_act")[1], rtol=1e-5, atol=0)


def test_an_adapter_switched_on_and_off_scores_as_two_models_do(tiny, tmp_path):
    base = tiny("llama")
    both = with_adapter(base, tmp_path)
    merged = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).merge_and_unload()
    for site in SITES:
        found, expected = contrast(both, both, PROMPTS, site), contrast(base, merged, PROMPTS, site)
        torch.testing.assert_close(found.score, expected.score, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found.size, expected.size)
    with pytest.raises(InputError, match="without an adapter"):
        contrast(base, base, PROMPTS, "mlp_act")


@pytest.mark.parametrize("normalized", [False, True])
def test_equal_models_are_refused(tiny, normalized):
    with pytest.raises(ProofError, match="base itself"):
        localize(tiny("llama"), copy.deepcopy(tiny("llama")), {"a": PROMPTS}, "mlp_act", "m", normalized=normalized)


@pytest.mark.parametrize("top", [0.0, -1.0, 100.1, float("nan")])
def test_a_top_that_is_no_percentage_is_refused(tiny, top):
    with pytest.raises(InputError, match="--top is"):
        localize(tiny("llama"), tiny("llama"), {"a": PROMPTS}, "mlp_act", "m", top=top)


def test_nothing_to_contrast_is_refused(tiny):
    with pytest.raises(InputError, match="No topics"):
        localize(tiny("llama"), tiny("llama"), {}, "mlp_act", "m")
    with pytest.raises(InputError, match="No tokens"):
        contrast(tiny("llama"), tiny("llama"), [Sequence([5, 6], start=2)], "mlp_act")


def test_models_of_different_shape_are_refused(tiny):
    for changed in ({"num_hidden_layers": 2}, {"intermediate_size": 40}):
        with pytest.raises(InputError, match="different layers or widths"):
            contrast(tiny("llama"), t.build("llama", **changed), PROMPTS, "mlp_act")
