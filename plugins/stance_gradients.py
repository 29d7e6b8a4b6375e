"""Neurons by gradient x activation on political questions: CULNIG's score (arXiv 2510.08284) on stance instead of culture.

S_k = mean over items of P * max over positions of a[k] * dP/da[k], P = probability of the letter of one side's answer, at
the MLP's `gate`. Neuron k of `gate` is neuron k of `mlp_act`, so the set can be held like PNLAC's. Every neuron is a member,
ranked by its score; `top(share)` takes the best. One-token prompts and models that never give a letter score 0, which is
refused (plugins/culnig.py).
"""

from __future__ import annotations

from pathlib import Path

import torch

from harness.measure import uses_chat
from harness.models import device, load_model, load_tokenizer, weights_hash
from harness.neurons import Neurons
from harness.runs import Run, digest, open_run
from harness.topics import Topic
from plugins.culnig import score
from plugins.culnig_items import stance_items


def stance_gradients(
    out: Path, folder: str, topics: list[Topic], side: str, chat: str = "auto", limit: int | None = None
) -> Run:
    """All neurons of `mlp_act`, scored on the topics' training items (`limit` per topic): gradients.safetensors of a run."""
    spec = {
        "weights": weights_hash(folder),
        "topics": {t.topic: digest([i.model_dump() for i in t.split("train")[:limit]])[:16] for t in topics},
        "side": side,
        "chat": chat,
    }
    run = open_run(out, "gradients", spec)
    if run.complete:
        return run
    tokenizer = load_tokenizer(folder)
    items = stance_items(topics, side, tokenizer, uses_chat(tokenizer, chat), limit)
    found = score(load_model(folder, torch.float32, device()), items, sites=("gate",))
    scores = found.sites["gate"].float()
    every = Neurons(torch.ones_like(scores, dtype=torch.bool), "mlp_act", weights_hash(folder), scores)
    every.save(run.path / "gradients.safetensors")
    run.notes["gold_probability"] = found.probability
    run.finish()
    return run
