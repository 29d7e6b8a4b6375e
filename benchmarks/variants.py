"""One engine for the base and its variants against the same requests on the base alone.

    python benchmarks/variants.py --variants 12 --items 6 --fresh 2

Variants are made by scaling the base's weights a little. Each is swapped into the running engine and asked packaged pairs and
statements (`--items` per topic); the base is asked the same thirteen times. `--fresh` of the variants are asked again on
engines of their own, whose answers must be the same and whose start-up is what a swap saves.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import arguments, median, publish

from harness.engines import Settings
from harness.engines.vllm import VLLMEngine
from harness.lmeval.roots import packaged_root
from harness.models import load_model, load_tokenizer, resolve
from harness.topics import find_topics


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
    given = arguments(__doc__ or "", model="smollm2-135m-instruct", variants=12, items=6, fresh=2)
    folder, settings = resolve(given.model), Settings(dtype="bfloat16", max_length=512)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [folder, *make_variants(folder, given.variants, Path(scratch))]
        begun = time.perf_counter()
        engine = VLLMEngine(folder, settings)
        starts = [time.perf_counter() - begun]
        pairs, choices = asked(engine.tokenizer, given.items)

        def ask(served: VLLMEngine) -> tuple[float, list[Any]]:
            served._llm.reset_prefix_cache()
            begun = time.perf_counter()
            answers = [served.score_continuations(pairs), served.score_choices(choices)]
            return time.perf_counter() - begun, answers

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
        different = 0.0
        for variant in folders[1 : 1 + given.fresh]:
            begun = time.perf_counter()
            fresh = VLLMEngine(variant, settings)
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
    publish("variants", rows, given.out, model=given.model, largest_difference_to_fresh_engines=different)
    print(f"Largest difference to fresh engines: {different}")


if __name__ == "__main__":
    main()
