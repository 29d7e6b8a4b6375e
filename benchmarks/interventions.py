"""Interventions in vLLM: on against off, and against hooks on the Torch engine, at generation.

    python benchmarks/interventions.py --prompts 120 --tokens 32

Off is an engine whose gates are not in use. Without a compiled graph such gates cost one `if`; in a compiled graph they
compute whether used or not, so that one is compared with an engine that has none, too. The op scales by 0.98, which costs
what any other does and leaves answers their length. The agreement with Torch is measured over the packaged questions: the
largest difference of option log-probabilities for every op and site, beside that of no op at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import Peer, alternate, arguments, median, publish

from harness.engines import Settings
from harness.engines.torch import TorchEngine
from harness.engines.vllm import VLLMEngine
from harness.interventions import Op
from harness.models import resolve
from harness.neurons import Neurons
from harness.sites import SITES, mlps, width

BARELY = Op(scale=0.98)
OPS = ("zero", "scale=2", "constant=0.3", "range=-0.05:0.05:0")


def some(model: Any, site: Any, share: float = 0.05) -> Neurons:
    """Random neurons of every layer."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(len(mlps(model)), width(model, site), generator=generator) < share
    return Neurons(mask, site, "benchmark")


def compiled(folder: str, gated: bool, count: int, tokens: int) -> dict[str, Callable[[], Any]]:
    """An engine with a compiled graph: `off` and, where it has gates, `on` generate for the same prompts."""
    from vllm import LLM, SamplingParams

    from harness.engines.vllm import gate
    from harness.engines.vllm_plugin import EXTENSION, LOAD_FORMAT

    more: dict[str, Any] = {
        "load_format": LOAD_FORMAT,
        "worker_extension_cls": EXTENSION,
        "additional_config": {LOAD_FORMAT: 1},
    }
    llm = LLM(model=folder, dtype="bfloat16", max_model_len=512, block_size=32, **(more if gated else {}))
    prompts: Any = [{"prompt_token_ids": ids} for ids in questions(llm.get_tokenizer(), count)]
    config = llm.llm_engine.model_config.hf_text_config
    shape = config.num_hidden_layers, config.intermediate_size
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) < 0.05

    def generate(on: bool) -> None:
        if gated:
            gate(llm, Neurons(mask if on else torch.zeros_like(mask), "mlp_act", "benchmark"), BARELY)
        llm.reset_prefix_cache()
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True), use_tqdm=False)

    generate(False)
    return {"off": lambda: generate(False), "on": lambda: generate(True)}


def compare_compiled(folder: str, count: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of the engines with compiled graphs."""
    options = {"folder": folder, "count": count, "tokens": tokens}
    gated, plain = Peer(compiled, gated=True, **options), Peer(compiled, gated=False, **options)
    ways = {"no gates": (plain, "off"), "off": (gated, "off"), "on": (gated, "on")}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (peer, what) in ways.items():
            taken[name].append(peer.run(what)[0])
    gated.close()
    plain.close()
    off = median(taken["off"])
    return [
        {"way": f"vLLM compiled, {name}", "seconds": median(t), "ratio to off": median(t) / off}
        for name, t in taken.items()
    ]


def questions(tokenizer: Any, count: int) -> list[list[int]]:
    from harness.lmeval.roots import packaged_root
    from harness.topics import find_topics

    texts = [item.question for topic in find_topics([packaged_root()]).values() for item in topic.items][:count]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=True, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for text in texts
    ]


def main() -> None:
    given = arguments(__doc__ or "", model="smollm2-135m-instruct", prompts=120, tokens=32, probes=200, rounds=5)
    folder = resolve(given.model)
    served = VLLMEngine(folder, Settings(dtype="bfloat16", max_length=512))
    hooked = TorchEngine.from_folder(folder, Settings(dtype="bfloat16", max_length=512))
    prompts, neurons = questions(served.tokenizer, given.prompts), some(hooked.model, "mlp_act")

    def generate(engine: Any, on: bool) -> None:
        engine.intervene(neurons if on else None, BARELY)
        engine.generate(prompts, given.tokens, [])

    ways = {
        "vLLM, off": lambda: generate(served, False),
        "vLLM, on": lambda: generate(served, True),
        "Torch hooks, on": lambda: generate(hooked, True),
    }
    generate(served, False)
    rounds = alternate(ways, given.rounds)
    seconds = {name: median(taken) for name, taken in rounds.items()}
    off = seconds["vLLM, off"]
    rows = [{"way": name, "seconds": taken, "ratio to off": taken / off} for name, taken in seconds.items()]
    served.close()
    hooked.close()
    rows += compare_compiled(folder, given.prompts, given.tokens, given.rounds)
    agreement = {dtype: agree(folder, dtype, given.probes) for dtype in ("float32", "bfloat16")}
    about = {
        "prompts": given.prompts,
        "tokens": given.tokens,
        "probes": given.probes,
        "rounds": rounds,
        "largest_difference": agreement,
    }
    publish("interventions", rows, given.out, model=given.model, **about)
    for dtype, found in agreement.items():
        print(f"Largest difference of option log-probabilities against Torch hooks, {dtype}: {found}")


def agree(folder: str, dtype: str, probes: int) -> dict[str, float]:
    """Largest difference between the engines' option log-probabilities, per site and op."""
    served = VLLMEngine(folder, Settings(dtype=dtype, max_length=512))
    hooked = TorchEngine.from_folder(folder, Settings(dtype=dtype, max_length=512))
    letters = [served.tokenizer.convert_tokens_to_ids(x) for x in "ABCD"]
    asked = [(ids, letters) for ids in questions(served.tokenizer, probes)]
    found = {"no op": apart(served, hooked, asked)}
    for site in SITES:
        neurons = some(hooked.model, site)
        for op in map(Op.parse, OPS):
            for engine in (served, hooked):
                engine.intervene(neurons, op)
            found[f"{site} {op}"] = apart(served, hooked, asked)
    served.close()
    hooked.close()
    return found


def apart(served: VLLMEngine, hooked: TorchEngine, asked: list[Any]) -> float:
    """Largest difference of the two engines' option log-probabilities."""
    scores = [torch.tensor(engine.score_choices(asked)) for engine in (served, hooked)]
    return float((scores[0] - scores[1]).abs().max())


if __name__ == "__main__":
    main()
