"""PNLAC's contrast against the published script's way of computing it: one prompt at a time, two models, NumPy float64.

    python benchmarks/localization.py --prompts 10 --rounds 3

The reference is a loop written here: for each prompt one float32 forward pass of each model with hooks that keep the
activations, moved to NumPy and summed in float64. Ours runs in bfloat16 with float32 sums over a batch and float64 sums over
batches, all six topics in one pass. Printed beside: the machine's own bfloat16 rate for a matrix product in the shape of the
MLP, timed in turn with the rest; the share of it that ours reaches; the rank correlation of the scores; and peak memory.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import Peer, alternate, arguments, matrix_product, median, publish
from scipy.stats import spearmanr

from harness.activations import visiting
from harness.contrast import Sequence, contrast
from harness.lmeval.roots import packaged_root
from harness.models import device, load_model, load_tokenizer, resolve
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


def pair(folder: str) -> tuple[Any, Any]:
    """Base and fine-tune in bfloat16, on the device."""
    return load_model(folder, torch.bfloat16, device()), perturbed(load_model(folder, torch.bfloat16, device()))


def peak_memory(folder: str, prompts: int) -> dict[str, Callable[[], float]]:
    """`work`: the peak of a process, in MB, that contrasts so many prompts of at most 16 tokens."""
    base, tuned = pair(folder)
    ids = [s.ids[-16:] for sequences in topic_prompts(folder, 100).values() for s in sequences]
    asked = [Sequence(ids[n % len(ids)]) for n in range(prompts)]

    def work() -> float:
        contrast(base, tuned, asked, "mlp_act", batch_tokens=1024)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    return {"work": work}


def main() -> None:
    given = arguments(__doc__ or "", model="smollm2-135m-instruct", prompts=10, rounds=3, batch_tokens=2048)
    folder, where = resolve(given.model), device()
    peaks = {}
    for count in (100, 2000):
        peer = Peer(peak_memory, folder=folder, prompts=count)
        peaks[count] = peer.run("work")[1]
        peer.close()
    prompts = topic_prompts(folder, given.prompts)
    flat = [sequence for sequences in prompts.values() for sequence in sequences]
    slow = load_model(folder, torch.float32), perturbed(load_model(folder, torch.float32))
    fast = pair(folder)
    fast[1].load_state_dict(slow[1].state_dict())
    found: dict[str, Any] = {}

    def ours() -> None:
        made = localize(*fast, prompts, "mlp_act", "benchmark", batch_tokens=given.batch_tokens)
        weights = torch.tensor([made.tokens[topic] for topic in made.scores], dtype=torch.float64)
        scores = torch.stack(list(made.scores.values()))
        found["ours"] = (scores.square() * weights[:, None, None]).sum(0).div(weights.sum()).sqrt().numpy()

    def reference() -> None:
        found["reference"] = naive(*slow, flat)

    ours()
    down = mlps(fast[0])[0].down
    product, work = matrix_product(torch.bfloat16, down.inputs, down.outputs, where)
    ways = {"ours": ours, "reference": reference, "product": product}
    seconds = {k: median(v) for k, v in alternate(ways, given.rounds).items()}
    rate = work / seconds.pop("product")
    tokens = sum(len(p.ids) for p in flat)
    flops = 2 * 2 * tokens * sum(p.numel() for p in decoder_layers(fast[0]).parameters())
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
    about = {"prompts": len(flat), "bf16_gflops": rate / 1e9, "rank_correlation": correlation}
    publish("localization", rows, given.out, model=given.model, **about, peak_mb={str(k): v for k, v in peaks.items()})
    print(f"bf16 matrix product: {rate / 1e9:.0f} GFLOP/s; rank correlation of the scores: {correlation:.4f}")
    print(f"Peak memory with 100 prompts {peaks[100]:.0f} MB, with 2,000 {peaks[2000]:.0f} MB")


if __name__ == "__main__":
    main()
