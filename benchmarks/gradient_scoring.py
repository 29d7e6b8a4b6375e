"""CULNIG's scores: ours against the structure of the public code, and against a loop over items and neurons.

    python benchmarks/gradient_scoring.py --items 16 --rounds 3

Ways to the same numbers, written here from the description of what they do:

- ours: plugins/culnig.py, in float32 and under bfloat16 autocast;
- public: batches of 16 padded on the left, all activations and gradients kept until the batch's end, gradients of the
  parameters made too, logits at every position, then one dictionary entry per neuron added to in Python, item by item;
- loops: one item at a time, all activations and gradients kept, the max taken neuron by neuron in Python and appended to
  lists that are kept for all items.

Equality is the largest difference over the largest score of a site (`ours` against `loops`; `public` against ours with its
padding). Peak memory is the resident set of processes of their own, over the items and over the same four times; 16 items
are a full batch of the public code.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from common import alternate, arguments, median, publish

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


def ours(model: Any, given: list[Item], compatible: bool = False) -> PerSite:
    return score(model, given, compatible=compatible).sites


def ours_bfloat16(model: Any, given: list[Item]) -> PerSite:
    return score(model, given, dtype=torch.bfloat16).sites


WAYS: dict[str, Callable[[Any, list[Item]], PerSite]] = {
    "ours": ours,
    "ours, bfloat16": ours_bfloat16,
    "public": public,
    "loops": loops,
}


def apart(a: PerSite, b: PerSite) -> float:
    return max(float((a[site] - b[site]).abs().max() / b[site].abs().max()) for site in b)


def peak(way: str, options: Any, times: int) -> float:
    """Most resident megabytes of a fresh process that scores the items `times` times over, as one data set."""
    settings = {"model": options.model, "items": options.items, "peak-of": way, "times": times}
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in settings.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    options = arguments(__doc__ or "", model="smollm2-135m-instruct", items=16, rounds=3, peak_of="", times=1)
    folder = models.resolve(options.model)
    if options.peak_of:
        WAYS[options.peak_of](models.load_model(folder, torch.float32), items(folder, options.items) * options.times)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    # Before this process loads a model: a child's peak starts at what its parent held when it was made.
    peaks = {name: [peak(name, options, times) for times in (1, 4)] for name in WAYS}
    given, model = items(folder, options.items), models.load_model(folder, torch.float32)
    found = {name: way(model, given) for name, way in WAYS.items()}
    differences = {
        "ours": apart(found["ours"], found["loops"]),
        "public": apart(ours(model, given, compatible=True), found["public"]),
        "loops": 0.0,
    }
    assert max(differences.values()) < 1e-4, differences
    differences["ours, bfloat16"] = apart(found["ours, bfloat16"], found["loops"])
    found.clear()
    seconds = alternate({name: (lambda way=way: way(model, given)) for name, way in WAYS.items()}, options.rounds)
    rows = []
    for name in WAYS:
        rows.append(
            {
                "way": name,
                "seconds": median(seconds[name]),
                "ratio to ours": median(seconds[name]) / median(seconds["ours"]),
                "largest difference": differences[name],
                "peak MB": peaks[name][0],
                "peak MB, 4x items": peaks[name][1],
                "growth MB": peaks[name][1] - peaks[name][0],
            }
        )
    lengths = [len(item.ids) for item in given]
    about = {"model": options.model, "items": len(given), "tokens": [min(lengths), max(lengths)], "rounds": seconds}
    publish("gradient_scoring", rows, options.out, **about)


if __name__ == "__main__":
    main()
