"""Training with neurons held against plain training: what the hold costs per step, and in memory.

    python benchmarks/held_training.py --examples 96 --rounds 3

Both tune the same examples with the same recipe, each in its own process. Seconds are medians over the steps of a run
without its first. Memory is the peak of the process: up to the end of the first round's last step, which is what the hold
costs while it trains, and of all rounds with loading and, where neurons are held, the proof afterwards.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import Peer, arguments, median, publish


def peak() -> float:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def trainer(kind: str, model: str, examples: int) -> dict[str, Callable[[], Any]]:
    """`train`: a tune of the examples, plain or with 5% of the neurons held; returns seconds per step and peak memory."""
    import time

    import torch
    from transformers import TrainerCallback

    from harness import finetune
    from harness.finetune import topic_pairs
    from harness.lmeval.roots import packaged_root
    from harness.models import load_config, weights_hash
    from harness.neurons import Neurons
    from harness.recipe import Recipe
    from harness.runs import open_run
    from harness.topics import find_topics

    recipe = Recipe.model_validate({"mode": "full", "epochs": 1, "precision": "bfloat16", "checkpoints": False})
    pairs = topic_pairs(find_topics([packaged_root()])["immigration"].split("train")[:examples], "right")
    config = load_config(model).get_text_config()
    mask = torch.rand(config.num_hidden_layers, config.intermediate_size) < 0.05
    hold = Neurons(mask, "mlp_act", weights_hash(model)) if kind == "held" else None
    times: list[float] = []
    peaks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())
            peaks.append(peak())

    finetune._Progress = Clock  # type: ignore[assignment,misc]

    def train() -> dict[str, float]:
        times.clear()
        folder = Path(tempfile.mkdtemp())
        try:
            finetune.tune(open_run(folder / "run", "tune", {}), model, pairs, recipe, 0, hold)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        steps = [b - a for a, b in pairwise(times)]
        return {"step": median(steps[1:]), "in training": peaks[0], "peak": peak()}

    return {"train": train}


def main() -> None:
    from harness.models import resolve

    given = arguments(__doc__ or "", model="smollm2-135m-instruct", examples=96, rounds=3)
    kinds = ("plain", "held")
    peers = {kind: Peer(trainer, kind=kind, model=resolve(given.model), examples=given.examples) for kind in kinds}
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(given.rounds):
        for kind, peer in peers.items():
            found[kind].append(peer.run("train")[1])
    for peer in peers.values():
        peer.close()
    steps = {kind: median([one["step"] for one in runs]) for kind, runs in found.items()}
    rows = [
        {
            "training": kind,
            "seconds a step": steps[kind],
            "ratio to plain": steps[kind] / steps["plain"],
            "peak MB in training": runs[0]["in training"],
            "peak MB": max(one["peak"] for one in runs),
        }
        for kind, runs in found.items()
    ]
    publish("held_training", rows, given.out, model=given.model, examples=given.examples)


if __name__ == "__main__":
    main()
