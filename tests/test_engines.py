"""The real vLLM engine on the embedded model, against Torch in float32. One engine is shared by the whole file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny as t
import torch
from peft import LoraConfig, get_peft_model

from harness import engines
from harness.engines import Settings, start
from harness.engines.torch import TorchEngine
from harness.engines.vllm import _NOT_SHAPE, VLLMEngine, _shape
from harness.engines.vllm_scoring import continuation_scores
from harness.errors import InputError, ProofError
from harness.interventions import ZERO, Op
from harness.lmeval.roots import packaged_root
from harness.measure import Asked, measure
from harness.models import load_model, load_tokenizer, weights_hash
from harness.neurons import Neurons
from harness.sites import SITES
from harness.topics import load_topic

pytestmark = [pytest.mark.model, pytest.mark.engine]

TOLERANCE = 2e-3  # nats, of a whole answer's log-probability of about -250


@pytest.fixture(scope="module", autouse=True)
def all_cores() -> Iterator[None]:
    """The embedded model is large enough to share out, unlike the tiny ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def vllm_engine(embedded: str) -> Iterator[VLLMEngine]:
    pytest.importorskip("vllm")
    engine = VLLMEngine(embedded, Settings(dtype="float32", max_length=512))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def torch_engine(embedded: str) -> TorchEngine:
    return TorchEngine.from_folder(embedded, Settings(dtype="float32", max_length=512))


@pytest.fixture(scope="module")
def requests(torch_engine: TorchEngine) -> list[tuple[list[int], list[int]]]:
    encode = torch_engine.tokenizer
    found = []
    for item in load_topic(packaged_root() / "political_stance" / "immigration.yaml").split("measure")[:4]:
        turn = [{"role": "user", "content": item.question}]
        text = encode.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        context = list(encode(text, add_special_tokens=False)["input_ids"])
        found += [(context, list(encode(t, add_special_tokens=False)["input_ids"])) for t in (item.left, item.right)]
    return found


def test_continuations_agree(vllm_engine: VLLMEngine, torch_engine: TorchEngine, requests: list) -> None:
    ours, reference = (e.score_continuations(requests) for e in (vllm_engine, torch_engine))
    assert max(abs(a[0] - b[0]) for a, b in zip(ours, reference, strict=True)) < TOLERANCE
    assert [a[1] for a in ours] == [b[1] for b in reference]


def test_choices_agree_and_equal_one_token_continuations(
    vllm_engine: VLLMEngine, torch_engine: TorchEngine, requests: list
) -> None:
    options = [torch_engine.tokenizer.convert_tokens_to_ids(label) for label in ("A", "B", "C")]
    asked = [(context, options) for context, _ in requests[::2]]
    ours, reference = (torch.tensor(e.score_choices(asked)) for e in (vllm_engine, torch_engine))
    assert (ours - reference).abs().max() < 1e-3
    single = torch_engine.score_continuations([(c, [o]) for c, _ in asked for o in options])
    assert (reference.flatten() - torch.tensor([s for s, _ in single])).abs().max() < 1e-3


def test_greedy_answers_agree(vllm_engine: VLLMEngine, torch_engine: TorchEngine, requests: list) -> None:
    prompts = [context for context, _ in requests[::2]]
    assert vllm_engine.generate(prompts, 12, []) == torch_engine.generate(prompts, 12, [])


def test_stop_strings_end_the_answer_alike(vllm_engine: VLLMEngine, torch_engine: TorchEngine, requests: list) -> None:
    prompts = [requests[0][0]]
    whole = torch_engine.generate(prompts, 12, [])[0]
    stop = whole.split()[3]
    assert vllm_engine.generate(prompts, 12, [stop]) == torch_engine.generate(prompts, 12, [stop])
    assert stop not in torch_engine.generate(prompts, 12, [stop])[0]


def test_batch_order_changes_nothing_that_matters(vllm_engine: VLLMEngine, requests: list) -> None:
    forward = vllm_engine.score_continuations(requests)
    backward = vllm_engine.score_continuations(requests[::-1])[::-1]
    assert max(abs(a[0] - b[0]) for a, b in zip(forward, backward, strict=True)) < TOLERANCE


def test_a_measurement_is_the_same_on_both(vllm_engine: VLLMEngine, torch_engine: TorchEngine) -> None:
    asked = Asked(("political_stance_science_pairs", "political_stance_science_statements"), limit=2)
    ours, reference = (measure(e, asked)[0]["results"] for e in (vllm_engine, torch_engine))
    for task, metric in zip(asked.tasks, ("nats", "stance"), strict=True):
        assert ours[task][f"{metric},none"] == pytest.approx(reference[task][f"{metric},none"], abs=1e-4)


def test_what_continuations_share_is_computed_once(
    vllm_engine: VLLMEngine, torch_engine: TorchEngine, requests: list
) -> None:
    block = vllm_engine._block
    context = [token for one, _ in requests for token in one][: 6 * block]  # whole blocks, the hardest case
    asked = [(context, answer) for _, answer in requests] + [
        (requests[0][0], requests[0][1]),
        (context, requests[1][1]),
    ]
    computed: list[int] = []

    def watched(prompts: list, params: Any, what: str) -> Any:
        outputs = vllm_engine._run(prompts, params, what)
        computed.extend(len(p) - (o.num_cached_tokens or 0) for p, o in zip(prompts, outputs, strict=True))
        return outputs

    vllm_engine._llm.reset_prefix_cache()
    shared = continuation_scores(watched, asked, vllm_engine._block)
    assert sum(computed) < 0.6 * sum(len(c) + len(a) for c, a in asked)
    alone = continuation_scores(vllm_engine._run, asked, vllm_engine._block, caching=False)
    again = continuation_scores(vllm_engine._run, asked, vllm_engine._block)  # every block is cached by now
    reference = torch_engine.score_continuations(asked)
    for found in (shared, alone, again):
        assert [s for s, _ in found] == pytest.approx([s for s, _ in reference], abs=TOLERANCE)
        assert [g for _, g in found] == [g for _, g in reference]


def test_more_options_than_one_request_takes(
    vllm_engine: VLLMEngine, torch_engine: TorchEngine, requests: list
) -> None:
    asked = [(requests[0][0], list(range(100, 400))), (requests[2][0], [7, 7, 9])]
    ours, reference = (e.score_choices(asked) for e in (vllm_engine, torch_engine))
    for one, other in zip(ours, reference, strict=True):
        assert one == pytest.approx(other, abs=1e-3)


OPS = ("zero", "scale=2", "constant=0.3", "range=-0.05:0.05:0")


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("op", OPS)
def test_an_intervention_is_the_same_on_both(
    vllm_engine: VLLMEngine, torch_engine: TorchEngine, requests: list, site: str, op: str
) -> None:
    neurons, asked = t.some_neurons(torch_engine.model, site, 0.1), Op.parse(op)
    options = [(context, list(range(100, 164))) for context, _ in requests[::2]]
    base = torch.tensor(vllm_engine.score_choices(options))
    found, continued = [], []
    for engine in (vllm_engine, torch_engine):
        assert engine.intervene(neurons, asked) > 0
        found.append(torch.tensor(engine.score_choices(options)))
        continued.append([score for score, _ in engine.score_continuations(requests[:2])])
        assert engine.intervene(None, asked) == 0
    assert (found[0] - found[1]).abs().max() < 2e-3
    assert continued[0] == pytest.approx(continued[1], abs=2e-2)
    assert (found[0] - base).abs().max() > 0.02
    assert torch.equal(torch.tensor(vllm_engine.score_choices(options)), base)


def test_a_second_intervention_replaces_the_first(
    vllm_engine: VLLMEngine, torch_engine: TorchEngine, requests: list
) -> None:
    first, second = (t.some_neurons(torch_engine.model, site, 0.1, seed=3) for site in ("mlp_act", "resid_post"))
    asked = [(requests[0][0], [100, 200, 300])]
    vllm_engine.intervene(second, ZERO)
    alone = vllm_engine.score_choices(asked)
    vllm_engine.intervene(first, ZERO)
    assert vllm_engine.score_choices(asked) != alone
    vllm_engine.intervene(second, ZERO)
    assert vllm_engine.score_choices(asked) == alone
    vllm_engine.intervene(None, ZERO)


def test_interventions_that_do_nothing_are_none_or_an_error(vllm_engine: VLLMEngine, torch_engine: TorchEngine) -> None:
    neurons = t.some_neurons(torch_engine.model, "mlp_act", 0.1)
    for engine in (vllm_engine, torch_engine):
        assert engine.intervene(neurons, Op(scale=1.0)) == 0
        with pytest.raises(ProofError, match="changed"):
            engine.intervene(neurons, Op(low=1e8, high=1e9, inside=0.0))
    with pytest.raises(InputError, match="come from another model"):
        vllm_engine.intervene(Neurons(neurons.mask[:-1], "mlp_act", "m"), ZERO)


def test_swapped_weights_answer_as_a_fresh_engine_does(
    vllm_engine: VLLMEngine, torch_engine: TorchEngine, requests: list, embedded: str, tmp_path: Path
) -> None:
    other = load_model(embedded)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.01)
    other.save_pretrained(tmp_path)
    torch_engine.tokenizer.save_pretrained(tmp_path)
    fresh = TorchEngine.from_folder(str(tmp_path), Settings(dtype="float32", max_length=512))
    asked = [(context, [100, 200, 300]) for context, _ in requests]
    base = vllm_engine.score_choices(asked)
    vllm_engine.swap(str(tmp_path))
    swapped = torch.tensor(vllm_engine.score_choices(asked))
    assert (swapped - torch.tensor(fresh.score_choices(asked))).abs().max() < 1e-3
    assert (swapped - torch.tensor(base)).abs().max() > 0.02
    vllm_engine.swap(embedded)
    assert vllm_engine.score_choices(asked) == base


def test_an_adapter_beside_the_base_answers_as_one_merged(
    torch_engine: TorchEngine, requests: list, embedded: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=8, target_modules=["down_proj", "gate_proj", "q_proj"], init_lora_weights=False)
    tuned: Any = get_peft_model(load_model(embedded, torch.float32), config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.05)
    tuned.save_pretrained(tmp_path)
    merged = TorchEngine(tuned.merge_and_unload(), torch_engine.tokenizer, Settings(max_length=512))
    choices = [(context, [100, 200, 300]) for context, _ in requests[:2]]
    engine = VLLMEngine(embedded, Settings(dtype="float32", max_length=512, adapters="request"))
    base = engine.score_choices(choices)
    engine.adapt(str(tmp_path))
    for ask in (lambda e: e.score_choices(choices), lambda e: [s for s, _ in e.score_continuations(requests)]):
        assert (torch.tensor(ask(engine)) - torch.tensor(ask(merged))).abs().max() < TOLERANCE
    assert (torch.tensor(engine.score_choices(choices)) - torch.tensor(base)).abs().max() > 0.02
    engine.swap(embedded)
    assert engine.score_choices(choices) == base
    with pytest.raises(InputError, match="start another engine"):
        engine.swap(variant_of(embedded, tmp_path / "other"))
    with pytest.raises(InputError, match="no gates"):
        engine.intervene(t.some_neurons(torch_engine.model, "mlp_act"), ZERO)
    engine.close()


def variant_of(folder: str, path: Path) -> str:
    """The folder's model with one weight changed."""
    model = load_model(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1  # type: ignore[index,operator]
    model.save_pretrained(path)
    load_tokenizer(folder).save_pretrained(path)
    return str(path)


def test_adapters_are_merged_unless_the_engine_was_started_for_them(
    vllm_engine: VLLMEngine, torch_engine: TorchEngine, embedded: str
) -> None:
    for engine in (vllm_engine, torch_engine):
        engine.adapt(None)
        with pytest.raises(InputError, match="merged"):
            engine.adapt("anything")
    with pytest.raises(InputError, match="needs vLLM"):
        start("torch", embedded, Settings(adapters="request"))
    with pytest.raises(InputError, match="merge, request"):
        start("vllm", embedded, Settings(adapters="both"))


def test_continuations_are_asked_in_the_order_they_come_in() -> None:
    """A second measurement of the base is asked in another order, which must reach the engine."""
    seen: list[list[list[int]]] = []

    def ask(prompts: list[list[int]], params: Any, what: str) -> Any:
        if what == "scoring":
            seen.append(prompts)
            raise InterruptedError
        return []

    asked = [([context], [context + 1, context + 2]) for context in (30, 10, 20, 10)]
    for order in (asked, asked[::-1]):
        with pytest.raises(InterruptedError):
            continuation_scores(ask, order, block=32)
    assert seen == [[[30, 31, 32], [10, 11, 12], [20, 21, 22]], [[10, 11, 12], [20, 21, 22], [30, 31, 32]]]


def test_under_auto_another_dtype_is_not_swapped_in(folder: Callable[[str], str], tmp_path: Path) -> None:
    other = t.save(load_model(folder("llama")).bfloat16(), tmp_path / "other")
    assert _shape(folder("llama"), _NOT_SHAPE) == _shape(other, _NOT_SHAPE)
    under_auto = _NOT_SHAPE - {"dtype", "torch_dtype"}
    assert _shape(folder("llama"), under_auto) != _shape(other, under_auto)


def test_another_architecture_is_not_swapped_in(vllm_engine: VLLMEngine, folder: Callable[[str], str]) -> None:
    with pytest.raises(InputError, match="start another engine"):
        vllm_engine.swap(folder("llama"))


def test_too_long_is_an_error_not_a_truncation(vllm_engine: VLLMEngine, requests: list) -> None:
    context, answer = requests[0]
    for ask in (
        lambda: vllm_engine.score_continuations([(context * 20, answer)]),
        lambda: vllm_engine.score_choices([(context * 20, [5])]),
        lambda: vllm_engine.generate([context], 512, []),
    ):
        with pytest.raises(InputError, match="Nothing is truncated"):
            ask()


STANCE_VLLM = """
import json, os, sys
os.environ.update(TQDM_DISABLE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")
os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR")
from harness.lmeval.stance_vllm import StanceVLLM

def main(model, asked, neurons):
    given = dict(dtype="float32", max_model_len=512, enforce_eager=True, block_size=32, distributed_executor_backend="uni")
    lm = StanceVLLM(pretrained=model, **given, **({"neurons": neurons, "op": "zero"} if neurons else {}))
    print(json.dumps(lm._loglikelihood_tokens([(None, c, a) for c, a in asked], disable_tqdm=True)))

if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])
"""


@pytest.mark.parametrize("masked", [False, True])
def test_stance_vllm_gives_the_reference_figures_to_lm_eval(
    torch_engine: TorchEngine, requests: list, embedded: str, tmp_path: Path, masked: bool
) -> None:
    asked = [*requests[:4], *((requests[0][0], [token]) for token in (100, 200, 300))]
    found = t.some_neurons(torch_engine.model, "mlp_act", 0.1, made_in=weights_hash(embedded))
    found.save(tmp_path / "n.safetensors")
    script = tmp_path / "ask.py"
    script.write_text(STANCE_VLLM)
    command = [
        sys.executable,
        str(script),
        embedded,
        json.dumps(asked),
        str(tmp_path / "n.safetensors") if masked else "",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    ours = json.loads(done.stdout.splitlines()[-1])
    torch_engine.intervene(found if masked else None, ZERO)
    reference = torch_engine.score_continuations(asked)
    torch_engine.intervene(None, ZERO)
    assert [s for s, _ in ours] == pytest.approx([s for s, _ in reference], abs=2e-2 if masked else TOLERANCE)
    assert [g for _, g in ours] == [g for _, g in reference]


def test_unknown_engine() -> None:
    with pytest.raises(InputError, match="engines: torch, vllm"):
        start("tgi", ".")


@pytest.mark.parametrize("slow, dtype", [(True, "float32"), (False, "auto")])
def test_auto_is_float32_where_bfloat16_would_be_slow(monkeypatch: pytest.MonkeyPatch, slow: bool, dtype: str) -> None:
    monkeypatch.setattr(engines, "slow_bfloat16", lambda: slow)
    assert (engines.Settings().dtype, engines.Settings("bfloat16").dtype) == (dtype, "bfloat16")


def test_bfloat16_is_slow_on_processors_without_its_units_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(machine: str, avx512: bool, amx: bool, cuda: bool = False) -> bool:
        monkeypatch.setattr("platform.machine", lambda: machine)
        monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512)
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
        return engines.slow_bfloat16.__wrapped__()

    assert slow("x86_64", False, False)
    assert not any((slow("x86_64", True, False), slow("AMD64", False, True), slow("x86_64", False, False, cuda=True)))
    assert not slow("aarch64", False, False)
