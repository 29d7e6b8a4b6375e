"""The verb localize: prompts of training items, two models, PNLAC, and what is kept of it in a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from harness.contrast import Sequence
from harness.engines.lease import make_room
from harness.errors import InputError, choices
from harness.measure import uses_chat
from harness.models import device, load_model, load_tokenizer, quiet, weights_hash
from harness.runs import Run, digest, open_run
from harness.sites import SiteName
from harness.topics import Topic
from harness.variants import Variant


def localize_step(
    out: Path,
    base: Variant,
    tuned: Variant,
    topics: list[Topic],
    site: SiteName = "mlp_act",
    tokens: str = "prompt",
    top: float = 30.0,
    normalized: bool = False,
    prompts: int | None = None,
    side: str = "right",
    chat: str = "auto",
    precision: str = "float32",
    about: dict[str, Any] | None = None,
) -> Run:
    """PNLAC on the topics' training questions, which are never the measured ones.

    `precision`: of the forward passes, "float32" or "bfloat16"; sums are float32 within and float64 over batches.
    """
    base.check()
    tuned.check()
    spec = {
        "base": base.spec(),
        "tuned": tuned.spec(),
        "topics": {t.topic: digest([i.model_dump() for i in t.split("train")[:prompts]])[:16] for t in topics},
        "site": site,
        "tokens": tokens,
        "top": top,
        "normalized": normalized,
        "side": side if tokens == "completion" else None,
        "chat": chat,
        "precision": precision,
        **(about or {}),
    }
    run = open_run(out, "localize", spec)
    if run.complete:
        return run
    from plugins import load, pnlac_report

    folder = base.folder()
    tokenizer = load_tokenizer(folder)
    chatting = uses_chat(tokenizer, chat)
    asked = {t.topic: _sequences(t, tokenizer, chatting, tokens, side, prompts) for t in topics}
    if empty := [t for t, sequences in asked.items() if not sequences]:
        raise InputError(
            f"These topics have no training items to localise on: {choices(empty)}; add items with split: train."
        )
    make_room()
    models = _models(base, tuned, getattr(torch, precision))
    localize = load("localizers", "pnlac")
    from harness.progress import bar

    with bar(total=sum(len(s) for s in asked.values()), what="contrasting") as progress:
        found = localize(
            *models,
            asked,
            site,
            weights_hash(folder),
            top,
            normalized,
            advance=lambda n: progress.update(n),
            devices=[f"cuda:{n}" for n in range(1, torch.cuda.device_count())],
        )
    description = {"normalized": normalized, "token_kind": tokens, **pnlac_report.describe(found)}
    pnlac_report.save(found, description, run.path)
    run.notes["localization"] = {k: description[k] for k in ("selected", "general", "general_share", "stability")}
    run.finish()
    return run


def _models(base: Variant, tuned: Variant, dtype: torch.dtype) -> tuple[Any, Any]:
    """Both models; one and the same where the fine-tune is an adapter on the base, which PNLAC switches on and off."""
    model = load_model(base.folder(), dtype, device())
    if tuned.adapter is None or base.adapter is not None or tuned.model != base.model:
        return model, load_model(tuned.folder(), dtype, device())
    with quiet():
        model.load_adapter(str(tuned.adapter))
    return model, model


def _sequences(topic: Topic, tokenizer: Any, chat: bool, tokens: str, side: str, limit: int | None) -> list[Sequence]:
    found = []
    for item in topic.split("train")[:limit]:
        text = item.question
        if chat:
            turn = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        elif tokens == "completion":
            text += "\n"
        ids = list(tokenizer(text, add_special_tokens=not chat)["input_ids"])
        answer = tokenizer(getattr(item, side), add_special_tokens=False)["input_ids"] if tokens == "completion" else []
        found.append(Sequence(ids + list(answer), len(ids) if tokens == "completion" else 0))
    return found
