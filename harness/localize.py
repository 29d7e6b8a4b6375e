"""The verb localize: prompts of training items, two models, a localiser, and what is kept of it in a run folder.

The localiser is PNLAC or any installed one (plugins/protocols.py has its type); sets, overlaps and files are the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.contrast import Sequence
from harness.engines.lease import make_room
from harness.errors import InputError, ProofError, choices
from harness.measure import prompt_ids, uses_chat
from harness.models import device, load_model, load_tokenizer, quiet, weights_hash
from harness.progress import bar
from harness.registry import Plugin, find, returned_wrong
from harness.runs import Run, digest, open_run
from harness.sites import SiteName, mlps, width
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
    method: str = "pnlac",
    options: Mapping[str, Any] | None = None,
) -> Run:
    """A localiser on the topics' training questions, which are never the measured ones.

    `precision`: of the forward passes, "float32" or "bfloat16"; PNLAC's sums are float32 within and float64 over batches.
    `method`: a plugin's name among localizers, with the `options` that it declares beside the common arguments.

    Raises:
        InputError: no such plugin, an option it does not take, or a result that is no localisation of these neurons.
        ProofError: scores that are all zero.
    """
    plugin = find("localizers", method)
    given = {**(options or {}), **({"normalized": True} if normalized else {})}
    localize = _accepting(plugin, given)
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
        **({} if method == "pnlac" else {"method": str(plugin), "options": dict(options or {})}),
        **(about or {}),
    }
    run = open_run(out, "localize", spec)
    if run.complete:
        return run
    from plugins import pnlac_report

    folder = base.folder()
    tokenizer = load_tokenizer(folder)
    chatting = uses_chat(tokenizer, chat)
    asked = {t.topic: _sequences(t, tokenizer, chatting, tokens, side, prompts) for t in topics}
    if empty := [t for t, sequences in asked.items() if not sequences]:
        raise InputError(
            f"These topics have no training items to localise on: {choices(empty)}; add items with split: train."
        )
    make_room()
    models = _models(base, tuned, getattr(torch, precision), one=method == "pnlac")
    with bar(total=sum(len(s) for s in asked.values()), what="contrasting") as progress:
        found = localize(*models, asked, site, weights_hash(folder), top=top, advance=lambda n: progress.update(n))
    _check(plugin, found, list(asked), site, weights_hash(folder), (len(mlps(models[0])), width(models[0], site)))
    description = {"normalized": normalized, "token_kind": tokens, **pnlac_report.describe(found)}
    pnlac_report.save(found, description, run.path)
    run.notes["localization"] = {k: description[k] for k in ("selected", "general", "general_share", "stability")}
    run.finish()
    return run


def _accepting(plugin: Plugin, options: Mapping[str, Any]) -> Any:
    """The plugin with its options bound; further GPUs too, where it declares that it takes `devices`.

    Raises:
        InputError: as `plugins.check`, or an option that the plugin does not declare.
    """
    from plugins import check

    function = check(plugin)
    parameters = inspect.signature(function).parameters
    common = {"base", "tuned", "prompts", "site", "model", "top", "advance", "devices"}
    declared = [name for name, p in parameters.items() if name not in common and p.kind is not p.VAR_KEYWORD]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if unknown := [name for name in options if name in common or (name not in declared and not anything)]:
        raise InputError(
            f"Plugin {plugin} takes no option {choices(unknown)}; its options: {choices(declared)}. Leave it out or name "
            "one of those."
        )
    if "devices" in parameters:
        return partial(function, **options, devices=[f"cuda:{n}" for n in range(1, torch.cuda.device_count())])
    return partial(function, **options)


def _check(plugin: Plugin, found: Any, topics: list[str], site: SiteName, model: str, shape: tuple[int, int]) -> None:
    """Refuse what sets, hooks or comparisons further on would stumble over.

    Raises:
        InputError: another type, topics, site, model or shape, or scores that are not numbers.
        ProofError: all scores are zero.
    """
    from plugins.protocols import Localization

    if not isinstance(found, Localization):
        raise returned_wrong(plugin, found, "plugins.Localization")
    tensors = {**{f"scores of {topic}": scores for topic, scores in found.scores.items()}, "size": found.size}
    if list(found.scores) != topics or (found.site, found.model) != (site, model):
        raise InputError(
            f"Plugin {plugin} localised {choices(found.scores)} at {found.site} of {found.model[:12]}; expected "
            f"{choices(topics)}, in that order, at {site} of {model[:12]}."
        )
    for name, tensor in tensors.items():
        came = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        if came != shape or not bool(tensor.isfinite().all()):
            raise InputError(
                f"Plugin {plugin}: {name} came as {came}; expected finite numbers of shape {shape}, layers x neurons at "
                f"{site}."
            )
    if not any(bool(scores.any()) for scores in found.scores.values()):
        raise ProofError(f"Plugin {plugin} scores every neuron 0; such a ranking is chance, so it is refused.")


def _models(base: Variant, tuned: Variant, dtype: torch.dtype, one: bool) -> tuple[Any, Any]:
    """Both models; with `one`, one and the same where the tune is an adapter on the base: PNLAC switches it on and off."""
    model = load_model(base.folder(), dtype, device())
    if not one or tuned.adapter is None or base.adapter is not None or tuned.model != base.model:
        return model, load_model(tuned.folder(), dtype, device())
    with quiet():
        model.load_adapter(str(tuned.adapter))
    return model, model


def _sequences(topic: Topic, tokenizer: Any, chat: bool, tokens: str, side: str, limit: int | None) -> list[Sequence]:
    found = []
    for item in topic.split("train")[:limit]:
        ids = prompt_ids(tokenizer, item.question, chat, "\n" if tokens == "completion" else "")
        answer = tokenizer(getattr(item, side), add_special_tokens=False)["input_ids"] if tokens == "completion" else []
        found.append(Sequence(ids + list(answer), len(ids) if tokens == "completion" else 0))
    return found
