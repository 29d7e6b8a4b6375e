"""One engine for the base and its variants against the same requests on the base alone.

    python benchmarks/variants.py --variants 12 --items 10 --fresh 1

Variants are made by scaling the base's weights a little. Each is swapped into the running engine and asked packaged pairs and
statements (`--items` per topic); the base is asked the same thirteen times. `--fresh` of the variants are asked again on
engines of their own, whose answers must be the same and whose start-up is what a swap saves. Two LoRA adapters are asked both
ways: merged and swapped in, and computed beside the base.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import arguments, median, publish
from peft import LoraConfig, get_peft_model

from harness.engines import Settings
from harness.engines.vllm import VLLMEngine
from harness.lmeval.roots import packaged_root
from harness.models import load_model, load_tokenizer, resolve
from harness.recipe import lora_targets
from harness.topics import find_topics
from harness.variants import materialise

SETTINGS = Settings(dtype="bfloat16", max_length=512)


def make_variants(folder: str, count: int, where: Path) -> list[str]:
    made = []
    for number in range(count):
        model = load_model(folder)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 0.001 * (number + 1))
        path = where / f"variant-{number}"
        model.save_pretrained(path)
        load_tokenizer(folder).save_pretrained(path)
        made.append(str(path))
    return made


def make_adapters(folder: str, where: Path, count: int = 2) -> list[Path]:
    """Random adapters of rank 16 on every linear map of the blocks."""
    made = []
    for number in range(count):
        torch.manual_seed(number)
        model = load_model(folder)
        config = LoraConfig(r=16, target_modules=lora_targets(model), init_lora_weights=False)
        adapted: Any = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(0.02)
        adapted.save_pretrained(where / f"adapter-{number}")
        made.append(where / f"adapter-{number}")
    return made


def timed(engine: VLLMEngine, pairs: list[Any], choices: list[Any]) -> tuple[float, list[Any]]:
    """Seconds of both kinds of request with nothing cached, and the answers."""
    engine._llm.reset_prefix_cache()
    begun = time.perf_counter()
    answers = [engine.score_continuations(pairs), engine.score_choices(choices)]
    return time.perf_counter() - begun, answers


def adapters_both_ways(folder: str, where: Path) -> list[dict[str, Any]]:
    """Rows of the base, adapters merged, and adapters beside the base, on one pair and one statement a topic."""
    few = asked(load_tokenizer(folder), 1)

    def ask(engine: VLLMEngine) -> tuple[float, Any]:
        return timed(engine, *few)

    made = make_adapters(folder, where)
    merged = [materialise(folder, adapter) for adapter in made]
    swapping, beside, bases = [], [], []
    engine = VLLMEngine(folder, SETTINGS)
    ask(engine)
    for path in merged:
        bases.append(ask(engine)[0])
        begun = time.perf_counter()
        engine.swap(path)
        swapping.append(time.perf_counter() - begun + ask(engine)[0])
        engine.swap(folder)
    engine.close()
    engine = VLLMEngine(folder, replace(SETTINGS, adapters="request"))
    for adapter in made:
        engine.adapt(str(adapter))
        beside.append(ask(engine)[0])
    engine.close()
    base = median(bases)
    return [
        {"asked": "the base, once (fewer questions)", "seconds": base, "ratio": 1.0},
        {"asked": "an adapter, merged, swapped in", "seconds": median(swapping), "ratio": median(swapping) / base},
        {"asked": "an adapter, beside the base", "seconds": median(beside), "ratio": median(beside) / base},
    ]


def asked(tokenizer: Any, items: int) -> tuple[list[Any], list[Any]]:
    """Continuations of the pairs, choices of the statements."""
    pairs, choices = [], []
    letters = [tokenizer.convert_tokens_to_ids(x) for x in "AB"]
    for topic in find_topics([packaged_root()]).values():
        for item in topic.split("measure")[:items]:
            context = tokenizer(f"{item.question}\n")["input_ids"]
            pairs += [(context, tokenizer(text)["input_ids"]) for text in (item.left, item.right)]
        for statement in topic.statements[:items]:
            for text in (statement.text, statement.reversed):
                choices.append((tokenizer(f"{text}\nA. Agree\nB. Disagree\nAnswer: ")["input_ids"], letters))
    return pairs, choices


def main() -> None:
    given = arguments(__doc__ or "", model="smollm2-135m-instruct", variants=12, items=10, fresh=1)
    folder = resolve(given.model)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [folder, *make_variants(folder, given.variants, Path(scratch))]
        begun = time.perf_counter()
        engine = VLLMEngine(folder, SETTINGS)
        starts = [time.perf_counter() - begun]
        pairs, choices = asked(engine.tokenizer, given.items)

        def ask(served: VLLMEngine) -> tuple[float, list[Any]]:
            return timed(served, pairs, choices)

        ask(engine)
        alone, together, swaps, found = 0.0, 0.0, [], {}
        for variant in folders:
            engine.swap(folder)
            alone += ask(engine)[0]
            begun = time.perf_counter()
            engine.swap(variant)
            swaps.append(time.perf_counter() - begun)
            taken, found[variant] = ask(engine)
            together += taken + swaps[-1]
        engine.close()
        both_ways = adapters_both_ways(folder, Path(scratch))
        different = 0.0
        for variant in folders[1 : 1 + given.fresh]:
            begun = time.perf_counter()
            fresh = VLLMEngine(variant, SETTINGS)
            starts.append(time.perf_counter() - begun)
            _, answers = ask(fresh)
            fresh.close()
            different = max(
                different,
                *(abs(a[0] - b[0]) for a, b in zip(answers[0], found[variant][0], strict=True)),
                *(
                    abs(x - y)
                    for a, b in zip(answers[1], found[variant][1], strict=True)
                    for x, y in zip(a, b, strict=True)
                ),
            )
    rows = [
        {"asked": f"the base, {len(folders)} times", "seconds": alone, "ratio": 1.0},
        {
            "asked": f"the base and {given.variants} variants, swaps included",
            "seconds": together,
            "ratio": together / alone,
        },
        {"asked": "one swap", "seconds": median(swaps)},
        {"asked": "one start of an engine", "seconds": median(starts)},
    ]
    rows += both_ways
    publish("variants", rows, given.out, model=given.model, largest_difference_to_fresh_engines=different)
    print(f"Largest difference to fresh engines: {different}")


if __name__ == "__main__":
    main()
