"""PNLAC's contrast against the published script's way of computing it: one prompt at a time, two models, NumPy float64.

    python benchmarks/localization.py --prompts 10 --rounds 3

The reference is a loop written here: for each prompt one float32 forward pass of each model with hooks that keep the
activations, moved to NumPy and summed in float64; in a process of its own as a script finds it. Ours runs in a process
settled as this project's commands settle theirs, in bfloat16 with float32 sums over a batch and float64 sums over
batches, all six topics in one pass. Printed beside: the machine's own bfloat16 rate for a matrix product in the shape of the
MLP, timed in turn with the rest; the share of it that ours reaches; the rank correlation of the scores; and peak memory.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import Peer, arguments, matrix_product, median, publish, take_turns
from scipy.stats import spearmanr

from harness.activations import visiting
from harness.contrast import Sequence, contrast
from harness.lmeval.roots import packaged_root
from harness.models import device, load_model, load_tokenizer, quiet, resolve
from harness.sites import decoder_layers, mlps
from harness.topics import find_topics
from plugins.pnlac import localize


def naive(base: Any, tuned: Any, prompts: list[Sequence]) -> np.ndarray:
    """R [l, n], one prompt at a time."""
    total, tokens = 0.0, 0
    for prompt in prompts:
        ids, kept = torch.tensor([prompt.ids]), []
        for model in (base, tuned):
            seen: dict[int, np.ndarray] = {}
            keep = visiting(model, "mlp_act", lambda layer, a, seen=seen: seen.update({layer: a[0].numpy().copy()}))
            with keep, torch.no_grad():
                model(input_ids=ids, use_cache=False)
            kept.append(np.stack([seen[layer] for layer in sorted(seen)]).astype(np.float64))
        total = total + ((kept[1] - kept[0]) ** 2).sum(1)
        tokens += len(prompt.ids)
    return np.sqrt(total / tokens)


def perturbed(model: Any) -> Any:
    """The model with slightly other weights, in place of a fine-tune."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02 * parameter.std())
    return model


def topic_prompts(folder: str, count: int) -> dict[str, list[Sequence]]:
    """Training questions of the six topics as chat prompts, `count` of each."""
    tokenizer, found = load_tokenizer(folder), {}
    for name, topic in find_topics([packaged_root()]).items():
        turns = [[{"role": "user", "content": item.question}] for item in topic.split("train")[:count]]
        texts = [tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
        found[name] = [Sequence(list(tokenizer(str(text), add_special_tokens=False)["input_ids"])) for text in texts]
    return found


def pair(folder: str, dtype: torch.dtype, where: str) -> tuple[Any, Any]:
    """Base and fine-tune; the same weights whatever they are rounded to."""
    tuned = perturbed(load_model(folder, torch.float32))
    return load_model(folder, dtype, where), tuned.to(where, dtype)


def reference(folder: str, prompts: int) -> dict[str, Callable[[], Any]]:
    """`work`: R [l, n] by the naive loop over all topics' prompts."""
    from transformers import AutoModelForCausalLM

    with quiet():
        base, tuned = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2))
    tuned = perturbed(tuned)
    flat = [s for sequences in topic_prompts(folder, prompts).values() for s in sequences]
    return {"work": lambda: naive(base, tuned, flat)}


def ours(folder: str, prompts: int, batch_tokens: int) -> dict[str, Callable[[], Any]]:
    """`work`: R [l, n] over all topics; `product`: the machine's own rate in the MLP's shape, in operations per second."""
    where = device()
    models, asked = pair(folder, torch.bfloat16, where), topic_prompts(folder, prompts)
    down = mlps(models[0])[0].down
    product, work = matrix_product(torch.bfloat16, down.inputs, down.outputs, where)

    def scores() -> np.ndarray:
        made = localize(*models, asked, "mlp_act", "benchmark", batch_tokens=batch_tokens)
        weights = torch.tensor([made.tokens[topic] for topic in made.scores], dtype=torch.float64)
        stacked = torch.stack(list(made.scores.values()))
        return (stacked.square() * weights[:, None, None]).sum(0).div(weights.sum()).sqrt().numpy()

    def rate() -> float:
        product()
        return work

    flops = 2 * 2 * sum(p.numel() for p in decoder_layers(models[0]).parameters())
    scores()
    return {"work": scores, "product": rate, "flops of a token": lambda: flops}


def peak_memory(folder: str, prompts: int) -> dict[str, Callable[[], float]]:
    """`work`: the peak of a process, in MB, that contrasts so many prompts of at most 16 tokens."""
    base, tuned = pair(folder, torch.bfloat16, device())
    ids = [s.ids[-16:] for sequences in topic_prompts(folder, 100).values() for s in sequences]
    asked = [Sequence(ids[n % len(ids)]) for n in range(prompts)]

    def work() -> float:
        contrast(base, tuned, asked, "mlp_act", batch_tokens=1024)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    return {"work": work}


def main() -> None:
    given = arguments(__doc__ or "", model="smollm2-135m-instruct", prompts=10, rounds=3, batch_tokens=2048)
    folder, peaks = resolve(given.model), {}
    for count in (100, 2000):
        peer = Peer(peak_memory, folder=folder, prompts=count)
        peaks[count] = peer.run("work")[1]
        peer.close()
    mine = Peer(ours, folder=folder, prompts=given.prompts, batch_tokens=given.batch_tokens)
    theirs = Peer(reference, settled=False, folder=folder, prompts=given.prompts)
    ways = {"ours": (mine, "work"), "reference": (theirs, "work"), "product": (mine, "product")}
    rounds, found = take_turns(ways, given.rounds)
    seconds = {name: median(taken) for name, taken in rounds.items()}
    rate = found["product"] / seconds.pop("product")
    tokens = sum(len(s.ids) for sequences in topic_prompts(folder, given.prompts).values() for s in sequences)
    flops = tokens * mine.run("flops of a token")[1]
    correlation = float(spearmanr(found["ours"].ravel(), found["reference"].ravel())[0])
    rows = [
        {
            "way": name,
            "tokens/s": tokens / taken,
            "ours is faster by": taken / seconds["ours"],
            "share of bf16 rate": flops / taken / rate,
        }
        for name, taken in seconds.items()
    ]
    about = {
        "prompts": 6 * given.prompts,
        "tokens": tokens,
        "rounds": rounds,
        "bf16_gflops": rate / 1e9,
        "rank_correlation": correlation,
    }
    publish("localization", rows, given.out, model=given.model, **about, peak_mb={str(k): v for k, v in peaks.items()})
    print(f"bf16 matrix product: {rate / 1e9:.0f} GFLOP/s; rank correlation of the scores: {correlation:.4f}")
    print(f"Peak memory with 100 prompts {peaks[100]:.0f} MB, with 2,000 {peaks[2000]:.0f} MB")


if __name__ == "__main__":
    main()
