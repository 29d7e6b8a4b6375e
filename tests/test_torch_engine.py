from __future__ import annotations

import random

import pytest
import tiny as t
import torch
import transformers

from harness.engines import Settings
from harness.engines.torch import TorchEngine
from harness.errors import InputError
from harness.interventions import DonorPatch, all_neurons
from harness.lmeval.model import EngineLM
from harness.sites import SITES

everywhere = pytest.mark.parametrize("name", t.ARCHITECTURES)
REQUESTS = [
    (t.tokens(c, seed=c), t.tokens(n, seed=c + 50)) for c, n in ((1, 3), (9, 1), (4, 4), (12, 6), (4, 2), (7, 5))
]
PROMPTS = [t.tokens(length, seed=length) for length in (3, 10, 6, 10, 1)]
STEPS = 10


def engine(model, batch_tokens: int = 4096, **more) -> TorchEngine:
    """An engine whose answers are token ids as text, so that nothing is lost in decoding."""
    made = TorchEngine(model, t.tokenizer(), Settings(max_length=64, batch_tokens=batch_tokens), **more)
    made.tokenizer.decode = lambda ids, **_: " ".join(map(str, ids))
    return made


def naive_score(model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    logprobs = torch.log_softmax(t.logits(model, context + continuation), -1)
    rows = [logprobs[len(context) + n - 1] for n in range(len(continuation))]
    greedy = all(int(row.argmax()) == token for row, token in zip(rows, continuation, strict=True))
    return sum(float(row[token]) for row, token in zip(rows, continuation, strict=True)), greedy


def until_end(ids: list[int], ends: tuple[int, ...] = (t.EOS,)) -> str:
    stop = next((n for n, token in enumerate(ids) if token in ends), len(ids))
    return " ".join(map(str, ids[: stop + 1]))


def greedy(model, prompt: list[int], steps: int = STEPS) -> str:
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=steps)
    return until_end(out[0, len(prompt) :].tolist())


@everywhere
def test_continuations_score_as_one_by_one(tiny, name):
    model = tiny(name)
    expected = [naive_score(model, *request) for request in REQUESTS]
    for batch_tokens in (1, 30, 4096):
        found = engine(model, batch_tokens).score_continuations(REQUESTS)
        assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
        assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]


@everywhere
def test_scores_come_back_in_the_order_of_the_requests(tiny, name):
    shuffled = random.Random(0).sample(REQUESTS, len(REQUESTS))
    found = dict(zip(map(str, shuffled), engine(tiny(name)).score_continuations(shuffled), strict=True))
    scores = [found[str(request)][0] for request in REQUESTS]
    assert scores == pytest.approx([naive_score(tiny(name), *request)[0] for request in REQUESTS], abs=1e-4)


def test_the_greedy_continuation_is_known_as_such(tiny):
    model, context = tiny("llama"), t.tokens(5)
    best = [int(n) for n in greedy(model, context, 3).split()]
    worse = [*best[:-1], (best[-1] + 1) % t.VOCAB]
    found = engine(model).score_continuations([(context, best), (context, worse)])
    assert [is_greedy for _, is_greedy in found] == [True, False]


@everywhere
@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_choices_score_as_one_by_one(tiny, name, batch_tokens):
    requests = [(context, [20, 90, 50][:n]) for n, (context, _) in zip((1, 2, 3, 3, 2, 1), REQUESTS, strict=True)]
    found = engine(tiny(name), batch_tokens).score_choices(requests)
    for (context, tokens), scores in zip(requests, found, strict=True):
        assert scores == pytest.approx([naive_score(tiny(name), context, [token])[0] for token in tokens], abs=1e-4)


@everywhere
@pytest.mark.parametrize("batch_tokens", [2, 4096])
def test_generation_is_transformers_own_whatever_the_padding(tiny, name, batch_tokens):
    found = engine(tiny(name), batch_tokens).generate(PROMPTS, STEPS, [])
    assert found == [greedy(tiny(name), prompt) for prompt in PROMPTS]
    assert len({*found}) > 2


def test_generation_ends_at_any_end_token_of_the_model():
    model = t.build("llama")
    free = [greedy(model, prompt).split() for prompt in PROMPTS]
    ends = (int(free[0][2]), int(free[1][4]))
    model.generation_config.eos_token_id = list(ends)
    expected = [until_end([int(n) for n in answer], (t.EOS, *ends)) for answer in free]
    assert engine(model).generate(PROMPTS, STEPS, []) == expected
    assert min(len(answer.split()) for answer in expected) < STEPS


def test_answers_are_cut_before_the_first_stop_string(tiny):
    made = engine(tiny("llama"))
    made.tokenizer.decode = lambda *_, **__: "one. two! three"
    assert made.generate([[5]], 1, ["!", ".", "?"]) == ["one"]
    assert made.generate([[5]], 1, ["?"]) == ["one. two! three"]


@everywhere
@pytest.mark.parametrize("site", SITES)
def test_an_empty_patch_changes_nothing(tiny, name, site):
    model, neurons = tiny(name), t.some_neurons(tiny(name), site, share=0.0)
    with_patch = engine(model, donor=t.with_other_mlps(model), patch=DonorPatch(neurons))
    assert with_patch.generate(PROMPTS, STEPS, []) == engine(model).generate(PROMPTS, STEPS, [])
    assert with_patch.score_continuations(REQUESTS) == engine(model).score_continuations(REQUESTS)


@everywhere
def test_patching_every_mlp_output_is_the_donor_where_the_rest_is_shared(tiny, name):
    model = tiny(name)
    donor, everything = t.with_other_mlps(model), all_neurons(t.LAYERS, t.HIDDEN, "mlp_out", "m")
    patched = engine(model, donor=donor, patch=DonorPatch(everything))
    donors = engine(donor)
    assert patched.generate(PROMPTS, STEPS, []) == donors.generate(PROMPTS, STEPS, [])
    assert donors.generate(PROMPTS, STEPS, []) != engine(model).generate(PROMPTS, STEPS, [])
    assert patched.score_continuations(REQUESTS) == donors.score_continuations(REQUESTS)
    choices = [(context, [20, 90]) for context, _ in REQUESTS]
    assert patched.score_choices(choices) == donors.score_choices(choices)


@everywhere
@pytest.mark.parametrize("site", SITES)
def test_partial_patching_follows_the_donor_step_by_step(tiny, name, site):
    model = tiny(name)
    donor, patch = t.with_other_mlps(model), DonorPatch(t.some_neurons(model, site, share=0.5))
    expected = []
    for prompt in PROMPTS:
        ids = list(prompt)
        while len(ids) < len(prompt) + 5 and (len(ids) == len(prompt) or ids[-1] != t.EOS):
            with patch.recording(donor):
                t.logits(donor, ids)
            with patch.replacing(model):
                ids.append(int(t.logits(model, ids)[-1].argmax()))
        expected.append(" ".join(map(str, ids[len(prompt) :])))
    assert engine(model, donor=donor, patch=patch).generate(PROMPTS, 5, []) == expected
    assert expected != engine(model).generate(PROMPTS, 5, [])


def test_what_is_too_long_is_refused_and_not_truncated(tiny):
    made = engine(tiny("llama"))
    assert made.max_length == 64
    for call in (
        lambda n: made.score_continuations([(t.tokens(n - 4), t.tokens(4))]),
        lambda n: made.score_choices([(t.tokens(n - 1), [5])]),
        lambda n: made.generate([t.tokens(n - 4)], 4, []),
    ):
        assert len(call(64)) == 1
        with pytest.raises(InputError, match="Nothing is truncated"):
            call(65)


SCALED_HEADS = {
    "granite": lambda small: transformers.GraniteForCausalLM(transformers.GraniteConfig(**small, logits_scaling=4.0)),
    "cohere": lambda small: transformers.CohereForCausalLM(transformers.CohereConfig(**small, logit_scale=0.25)),
    "gemma2": lambda small: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**small, final_logit_softcapping=2.0)
    ),
}


@pytest.mark.parametrize("name", SCALED_HEADS)
def test_heads_that_scale_or_cap_their_logits_are_followed(name):
    torch.manual_seed(0)
    model = SCALED_HEADS[name](t.SMALL | {"vocab_size": t.VOCAB, "pad_token_id": t.PAD}).eval()
    expected = [naive_score(model, *request)[0] for request in REQUESTS]
    assert [score for score, _ in engine(model).score_continuations(REQUESTS)] == pytest.approx(expected, abs=1e-4)


class OtherHead(transformers.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 3
        return out


def test_a_head_that_does_something_unknown_is_refused(tiny):
    with pytest.raises(InputError, match="does not know"):
        engine(OtherHead(tiny("llama").config).eval())


@pytest.mark.model
def test_the_embedded_model_scores_and_generates_as_transformers_does(embedded):
    made = TorchEngine.from_folder(embedded, Settings(dtype="float32", max_length=64))
    prompts = [made.tokenizer(text)["input_ids"] for text in ("The capital of France is", "Two and two make")]
    expected = [
        made.tokenizer.decode(
            made.model.generate(torch.tensor([p]), do_sample=False, max_new_tokens=6)[0, len(p) :],
            skip_special_tokens=True,
        )
        for p in prompts
    ]
    assert made.generate(prompts, 6, []) == expected
    request = (prompts[0], made.tokenizer(" Paris")["input_ids"])
    assert made.score_continuations([request])[0][0] == pytest.approx(naive_score(made.model, *request)[0], abs=1e-3)


def test_a_swapped_model_is_served_as_by_an_engine_of_its_own(tmp_path):
    first = t.save(t.build("llama", max_position_embeddings=24), tmp_path / "first")
    other = t.build("qwen2", seed=3).bfloat16()
    other.save_pretrained(tmp_path / "other")
    tokenizer = t.tokenizer()
    tokenizer.pad_token = "<bot>"
    tokenizer.save_pretrained(tmp_path / "other")
    swapped = TorchEngine.from_folder(first, Settings(max_length=48))
    fresh = TorchEngine.from_folder(str(tmp_path / "other"), Settings(max_length=48))
    assert swapped.max_length == 24
    swapped.swap(str(tmp_path / "other"))
    assert (swapped.max_length, swapped._pad, swapped.model.dtype) == (48, tokenizer.pad_token_id, torch.bfloat16)
    assert swapped.score_continuations(REQUESTS) == fresh.score_continuations(REQUESTS)


def test_a_token_asked_about_alone_is_said_to_be_the_greedy_one(tiny):
    """lm-eval's `loglikelihood` tasks take that for accuracy."""
    model = tiny("llama")
    lm = EngineLM(engine(model))
    context = t.tokens(6)
    best = int(t.logits(model, context)[-1].argmax())
    other = best - 1 if best > 10 else best + 1
    for token, greedy in ((best, True), (other, False)):
        ((score, said),) = lm._loglikelihood_tokens([(None, context, [token])])
        assert (score, said) == (pytest.approx(naive_score(model, context, [token])[0], abs=1e-4), greedy)
    options = lm._loglikelihood_tokens([(None, context, [best]), (None, context, [other])])
    assert options[0][0] == pytest.approx(naive_score(model, context, [best])[0], abs=1e-4)
