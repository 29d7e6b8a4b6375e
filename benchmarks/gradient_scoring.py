"""CULNIG's scores: ours against the structure of the public code, and against a loop over items and neurons.

    python benchmarks/gradient_scoring.py --items 16 --rounds 3

Ways to the same numbers, written here from the description of what they do:

- ours: plugins/culnig.py, in float32, with the public code's padding, and under bfloat16 autocast;
- public: batches of 16 padded on the left, all activations and gradients kept until the batch's end, gradients of the
  parameters made too, logits at every position, then one dictionary entry per neuron added to in Python, item by item;
- loops: one item at a time, all activations and gradients kept, the max taken neuron by neuron in Python and appended to
  lists that are kept for all items.

Equality is the largest difference over the largest score of a site (`ours` against `loops`; `public` against ours with its
padding). Each way has a process of its own: ours settled as this project's commands settle theirs, the others as a script
finds it. Peak memory is the resident set of such processes, over the same items 8 and 16 times: by then the heap of ours has
its final size. 16 items are a full batch of the public code.
"""

from __future__ import annotations

import resource
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from common import Peer, arguments, median, publish, take_turns

from harness import models
from harness.lmeval.roots import packaged_root
from harness.projections import PROJECTION_SITES, projection_parts
from harness.topics import all_topics
from plugins.culnig import Item, PerSite, score

QUESTION = (
    "Two people disagree about {topic}.\nA. {a}\nB. {b}\nWhich of the two is right? Answer with one letter.\nAnswer:"
)


def items(folder: str, count: int) -> list[Item]:
    """Two claims of opposite direction as options; the gold answer is the left one's letter."""
    tokenizer = models.load_tokenizer(folder)
    letters = [tokenizer.encode(f" {letter}", add_special_tokens=False)[-1] for letter in "AB"]
    made = []
    for topic in all_topics([packaged_root()]).values():
        for n, claim in enumerate(s for s in topic.statements if s.reversed):
            pair = [claim.text, claim.reversed][:: 1 if n % 2 else -1]
            text = QUESTION.format(topic=topic.title.lower(), a=pair[0], b=pair[1])
            left_first = (claim.agree == "left") == bool(n % 2)
            made.append(Item(tokenizer.encode(text), letters[0 if left_first else 1]))
    return made[:: max(1, len(made) // count)][:count]


class Kept:
    """Activations and their gradients of every hooked projection, kept until the next forward pass."""

    def __init__(self, model: Any) -> None:
        self.seen: dict[tuple[str, int], torch.Tensor] = {}
        for layer, parts in enumerate(projection_parts(model)):
            for site, part in parts.items():
                part.module.register_forward_hook(self._keep(site, layer))

    def _keep(self, site: str, layer: int) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: torch.Tensor) -> None:
            output.retain_grad()
            self.seen[site, layer] = output

        return hook


def public(model: Any, given: list[Item]) -> PerSite:
    """Batches of 16, then a Python loop over items and neurons that adds to a dictionary."""
    kept, sums = Kept(model), defaultdict(lambda: defaultdict(float))
    for begin in range(0, len(given), 16):
        batch = given[begin : begin + 16]
        longest = max(len(item.ids) for item in batch)
        ids = torch.tensor([[0] * (longest - len(item.ids)) + item.ids for item in batch])
        mask = torch.tensor([[0] * (longest - len(item.ids)) + [1] * len(item.ids) for item in batch])
        model.zero_grad()
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -1]
        p = logits.softmax(-1)[torch.arange(len(batch)), torch.tensor([item.gold for item in batch])]
        p.sum().backward()
        for (site, layer), output in kept.seen.items():
            assert output.grad is not None
            largest = (output * output.grad).masked_fill((mask == 0)[..., None], 0.0).amax(1)
            for row in (p[:, None] * largest).tolist():
                for neuron, value in enumerate(row):
                    sums[site, layer, neuron]["all"] += value
    _forget(model)
    return _stacked(model, lambda *key: sums[key]["all"] / len(given))


def loops(model: Any, given: list[Item]) -> PerSite:
    """One item at a time, one max per neuron, a list of all items' scores per neuron."""
    kept, lists = Kept(model), defaultdict(list)
    for item in given:
        model.zero_grad()
        p = model(input_ids=torch.tensor([item.ids])).logits[0, -1].softmax(-1)[item.gold]
        p.backward()
        weight = p.item()
        for (site, layer), output in kept.seen.items():
            assert output.grad is not None
            product = (output[0] * output.grad[0]).detach()
            for neuron in range(product.shape[1]):
                lists[site, layer, neuron].append(weight * product[:, neuron].max().item())
    _forget(model)
    return _stacked(model, lambda *key: sum(lists[key]) / len(given))


def _forget(model: Any) -> None:
    model.zero_grad()
    for module in model.modules():
        module._forward_hooks.clear()


def _stacked(model: Any, value: Callable[[str, int, int], float]) -> PerSite:
    layers = projection_parts(model)
    return {
        site: torch.tensor(
            [[value(site, n, k) for k in range(parts[site].width)] for n, parts in enumerate(layers)],
            dtype=torch.float64,
        )
        for site in PROJECTION_SITES
    }


def ours(model: Any, given: list[Item]) -> PerSite:
    return score(model, given).sites


def ours_bfloat16(model: Any, given: list[Item]) -> PerSite:
    return score(model, given, dtype=torch.bfloat16).sites


def ours_compatible(model: Any, given: list[Item]) -> PerSite:
    return score(model, given, compatible=True).sites


WAYS: dict[str, Callable[[Any, list[Item]], PerSite]] = {
    "ours": ours,
    "ours, compatible": ours_compatible,
    "ours, bfloat16": ours_bfloat16,
    "public": public,
    "loops": loops,
}


PUBLISHED = ("public", "loops")  # each in a process as a script finds it; ours in one settled as our commands settle it


MEASURED = (8, 16)  # how many times over the items when memory is measured


def apart(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Largest difference, as a share of the largest score of its site."""
    return max(float(np.abs(a[site] - b[site]).max() / np.abs(b[site]).max()) for site in b)


def serve(model: str, count: int, times: int, way: str) -> dict[str, Callable[[], Any]]:
    """`work`: the scores of the items, so many times over, by one way; `peak`: the process's most resident megabytes."""
    from transformers import AutoModelForCausalLM

    folder = models.resolve(model)
    if way in PUBLISHED:
        with models.quiet():
            loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    else:
        loaded = models.load_model(folder, torch.float32)
    given = items(folder, count) * times
    return {
        "work": lambda: {site: scores.numpy() for site, scores in WAYS[way](loaded, given).items()},
        "peak": lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def peak(options: dict[str, Any], way: str, times: int) -> float:
    """Most resident megabytes of a fresh process that scores the items `times` times over, as one data set."""
    peer = Peer(serve, settled=way not in PUBLISHED, way=way, times=times, **options)
    peer.run("work")
    found = peer.run("peak")[1]
    peer.close()
    return found


def main() -> None:
    given = arguments(__doc__ or "", model="smollm2-135m-instruct", items=16, rounds=3)
    options = {"model": given.model, "count": given.items}
    peaks = {
        way: {f"peak MB, {n * given.items} items": peak(options, way, n) for n in MEASURED}
        for way in WAYS
        if way != "loops"
    }
    peers = {way: Peer(serve, settled=way not in PUBLISHED, way=way, times=1, **options) for way in WAYS}
    asked = {way: (peer, "work") for way, peer in peers.items()}
    take_turns(asked, 1)  # warm-up
    rounds, found = take_turns(asked, given.rounds)
    differences = {
        "ours": apart(found["ours"], found["loops"]),
        "ours, compatible": apart(found["ours, compatible"], found["public"]),
        "public": apart(found["public"], found["ours, compatible"]),
        "loops": 0.0,
    }
    assert max(differences.values()) < 1e-4, differences
    differences["ours, bfloat16"] = apart(found["ours, bfloat16"], found["loops"])
    seconds = {way: median(taken) for way, taken in rounds.items()}
    rows = [
        {
            "way": way,
            "seconds": seconds[way],
            "ratio to ours": seconds[way] / seconds["ours"],
            "largest difference": differences[way],
            **peaks.get(way, {}),
        }
        for way in WAYS
    ]
    lengths = [len(item.ids) for item in items(models.resolve(given.model), given.items)]
    about = {"model": given.model, "items": len(lengths), "tokens": [min(lengths), max(lengths)], "rounds": rounds}
    publish("gradient_scoring", rows, given.out, **about)


if __name__ == "__main__":
    main()
