"""Interventions in vLLM: on against off, and against hooks in Torch, at generation.

    python benchmarks/interventions.py --prompts 120 --tokens 128

Off is an engine whose gates are not in use. Without a compiled graph such gates cost one `if`; in a compiled graph they
compute whether used or not, so that one is compared with an engine that has none, too. The op scales by 0.98, which costs
what any other does and hardly changes the length of answers; what counts is the tokens a second that were written. Peers are
the Torch engine, which batches by a budget of tokens, and transformers' `generate` under the same hooks in batches of 16.
"bare matrix products" is a bound: those of the written tokens alone, at the rate this machine reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import Peer, alternate, arguments, matrix_product, median, publish, questions, some, take_turns

from harness.engines import Settings
from harness.engines.torch import TorchEngine
from harness.engines.vllm import VLLMEngine
from harness.interventions import Op, applying
from harness.models import device, resolve
from harness.neurons import Neurons
from harness.process import settle
from harness.sites import decoder_layers, mlps

BARELY = Op(scale=0.98)
BATCH = 16  # of `generate`
TORCH, GENERATE = "Torch engine, on", f"generate under hooks, batch {BATCH}, on"


def compiled(folder: str, dtype: str, gated: bool, count: int, tokens: int) -> dict[str, Callable[[], Any]]:
    """An engine with a compiled graph: `off` and, where it has gates, `on` generate for the same prompts."""
    from vllm import LLM, SamplingParams

    from harness.engines.vllm import gate, prepared
    from harness.engines.vllm_plugin import EXTENSION, LOAD_FORMAT

    more: dict[str, Any] = {
        "load_format": LOAD_FORMAT,
        "worker_extension_cls": EXTENSION,
        "additional_config": {LOAD_FORMAT: 1},
    }
    served = prepared(memory=2) | {"enforce_eager": False, **(more if gated else {})}
    llm = LLM(model=folder, dtype=dtype, max_model_len=512, **served)  # type: ignore[arg-type]
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


def compare_compiled(given: Any, folder: str) -> dict[str, float]:
    """Tokens/s of the engines with compiled graphs."""
    options = {"folder": folder, "dtype": given.dtype, "count": given.prompts, "tokens": given.tokens}
    gated, plain = Peer(compiled, gated=True, **options), Peer(compiled, gated=False, **options)
    ways = {"no gates": (plain, "off"), "off": (gated, "off"), "on": (gated, "on")}
    taken, _ = take_turns(ways, given.rounds)
    gated.close()
    plain.close()
    written = given.prompts * given.tokens
    return {f"vLLM compiled, {name}": written / median(t) for name, t in taken.items()}


def compare(given: Any, folder: str) -> dict[str, float]:
    """Tokens/s of the engines without compiled graphs, of the peers, and of the bound."""
    settings = Settings(dtype=given.dtype, max_length=512)
    served, hooked = VLLMEngine(folder, settings), TorchEngine.from_folder(folder, settings)
    tokenizer = served.tokenizer
    prompts, neurons = questions(tokenizer, given.prompts), some(hooked.model, "mlp_act")
    written: dict[str, int] = {}

    def count(way: str, answers: list[str]) -> None:
        written[way] = sum(map(len, tokenizer(answers, add_special_tokens=False)["input_ids"]))

    def engine(way: str, engine: Any, on: bool) -> None:
        engine.intervene(neurons if on else None, BARELY)
        count(way, engine.generate(prompts, given.tokens, []))

    def transformers(way: str) -> None:
        hooked.intervene(None, BARELY)
        model: Any = hooked.model
        answers: list[str] = []
        with applying(model, neurons, BARELY):
            for start in range(0, len(prompts), BATCH):
                batch = tokenizer.pad(
                    {"input_ids": prompts[start : start + BATCH]}, padding_side="left", return_tensors="pt"
                ).to(model.device)
                out = model.generate(**batch, max_new_tokens=given.tokens, do_sample=False)
                answers += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        count(way, answers)

    ways: dict[str, Callable[[str], None]] = {
        "vLLM, off": lambda way: engine(way, served, False),
        "vLLM, on": lambda way: engine(way, served, True),
        TORCH: lambda way: engine(way, hooked, True),
        GENERATE: transformers,
    }
    engine("warm-up", served, True)  # changing the gates empties the prefix cache, here and in every round
    rounds = alternate({name: lambda name=name, work=work: work(name) for name, work in ways.items()}, given.rounds)
    rates = {name: written[name] / median(taken) for name, taken in rounds.items()}
    rates["bare matrix products"] = bound(hooked.model, given.rounds)
    served.close()
    hooked.close()
    return rates


def bound(model: Any, rounds: int) -> float:
    """Tokens/s, did the machine nothing but the blocks' and the head's matrix products, once a token."""
    down = mlps(model)[0].down
    product, operations = matrix_product(model.dtype, down.inputs, down.outputs, device())
    product()
    speed = operations / median(alternate({"product": product}, rounds)["product"])
    weights = sum(p.numel() for p in decoder_layers(model).parameters()) + model.get_output_embeddings().weight.numel()
    return speed / (2 * weights)


def main() -> None:
    given = arguments(__doc__ or "", model="smollm2-135m-instruct", dtype="bfloat16", prompts=120, tokens=128, rounds=3)
    settle()
    folder = resolve(given.model)
    rates = compare(given, folder) | compare_compiled(given, folder)
    rows = [
        {
            "way": way,
            "tokens/s": rate,
            "times the Torch engine": rate / rates[TORCH],
            "times generate": rate / rates[GENERATE],
        }
        for way, rate in rates.items()
    ]
    for kind in ("vLLM", "vLLM compiled"):
        print(
            f"{kind}: a token takes {rates[f'{kind}, off'] / rates[f'{kind}, on']:.3f} of the time without an intervention"
        )
    about = {"dtype": given.dtype, "prompts": given.prompts, "tokens": given.tokens, "rounds": given.rounds}
    publish("interventions", rows, given.out, model=given.model, **about)


if __name__ == "__main__":
    main()
