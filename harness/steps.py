"""The verbs: measure, tune, patch; localize.py holds the fourth. Each makes one run folder, or does nothing when it is there.

The command line and an experiment call these same functions; base, tuned, held and patched models differ only in the
arguments.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from harness import engines
from harness.anchor import Anchored
from harness.axes import axis_effects
from harness.chat_template import template_effect
from harness.diagnosis import diagnoses
from harness.distributed import check_processes, tune_in
from harness.engines.cached import AnswerStore, CachedEngine
from harness.engines.lease import leased, make_room
from harness.errors import InputError
from harness.finetune import measured_prompts_in, tune
from harness.interventions import ZERO
from harness.judges import EMBEDDED, names
from harness.judges.embedded import texts_hash
from harness.judges.panel import agreement, relabel, with_judged
from harness.margin import HeldMargins
from harness.measure import Asked, measure, uses_chat
from harness.mitigation import texts
from harness.models import lineage, load_tokenizer, resolve, weights_hash
from harness.neurons import Neurons
from harness.placed import title
from harness.recipe import Recipe
from harness.runs import Run, digest, kept_answers, open_run, package_versions, save_measurement
from harness.variants import Variant, check_neurons


def measure_step(
    out: Path,
    variant: Variant,
    asked: Asked,
    chat: str = "auto",
    engine: str = "vllm",
    settings: engines.Settings | None = None,
    about: dict[str, Any] | None = None,
) -> Run:
    """Measure one variant. `about`: label, role, reference, on_topic and the like, for the comparison.

    With neurons to intervene on, an adapter is merged whatever the settings say: vLLM takes gates or adapters, not both.
    """
    settings = settings or engines.Settings()
    variant.check()
    if variant.neurons is not None:
        settings = replace(settings, adapters="merge")
    beside = settings.adapters == "request" and variant.adapter is not None
    spec = {**variant.spec(), **_asked_spec(asked, chat), "engine": engine, "dtype": settings.dtype, **(about or {})}
    if beside:
        spec["adapters"] = "request"
    if settings.tensor_parallel > 1:
        spec["tensor_parallel"] = settings.tensor_parallel
    run = open_run(out, "measure", {**spec, "seed": settings.seed})
    if run.complete:
        return run

    def ask() -> tuple[dict[str, Any], pd.DataFrame]:
        folder = variant.folder(merged=not beside)
        tokenizer = load_tokenizer(folder)
        chatting = uses_chat(tokenizer, chat)
        identity = digest([variant.spec(), engine, vars(settings), asked.order_seed, package_versions()])
        proof = digest(["effect", identity])
        with ExitStack() as stack:
            store = stack.enter_context(closing(AnswerStore()))

            def serve() -> engines.Engine:
                serving = stack.enter_context(leased(engine, folder, settings))
                if beside:
                    stack.callback(serving.adapt, None)
                    run.notes["effect"] = {"adapter": {"largest_change": serving.adapt(str(variant.adapter))}}
                if variant.neurons and variant.op:
                    stack.callback(serving.intervene, None, ZERO)
                    effect = serving.intervene(Neurons.load(variant.neurons), variant.op)
                    run.notes["effect"] = {"largest_change": effect}
                if "effect" in run.notes:
                    store.put_many({proof: json.dumps(run.notes["effect"])})
                return serving

            longest = engines.longest(folder, settings)
            cached = CachedEngine(serve, store, identity, engine, tokenizer, longest)
            answered = measure(cached, replace(asked, chat=chatting))
            if (beside or variant.op) and "effect" not in run.notes:  # every answer was in the cache
                if known := store.get_many([proof]):
                    run.notes["effect"] = json.loads(known[proof])
                else:
                    serve()
        if (merging := None if beside else variant.effect()) is not None:
            run.notes["effect"] = {**run.notes.get("effect", {}), "adapter": merging}
        run.notes["chat_template"] = template_effect(tokenizer) if chatting else None
        run.notes["requests"] = {"asked": cached.asked, "from_cache": cached.hits}
        return answered

    _save(run, *kept_answers(run, ask), asked.judge)
    return run


def _save(run: Run, results: dict[str, Any], samples: pd.DataFrame, judge: str) -> None:
    """Let the judges read the open answers and write the run; what the measurement itself shows goes into its notes."""
    judged = relabel(samples, judge)
    run.notes["judges"] = agreement(judged)
    run.notes["diagnoses"] = diagnoses(judged)
    run.notes["axes"] = json.loads(axis_effects(judged).to_json(orient="records"))
    save_measurement(run, with_judged(results, judged), judged)


def _asked_spec(asked: Asked, chat: str) -> dict[str, Any]:
    from harness.lmeval.roots import all_roots
    from harness.topics import all_topics

    topics = all_topics([*all_roots(), *asked.folders])
    content = digest([t.model_dump(exclude={"path"}) for t in topics.values()])
    return {
        "tasks": list(asked.tasks),
        "limit": asked.limit,
        "chat": chat,
        "judge": asked.judge,
        "judge_texts": texts_hash() if EMBEDDED in names(asked.judge) else None,
        "topics_hash": content[:16],
        "order_seed": asked.order_seed,
        "axes": asked.axes,
        "temperature": asked.temperature,
        "sampling_seed": asked.sampling_seed if asked.temperature else None,
    }


def tune_step(
    out: Path,
    model: str,
    pairs: list[dict[str, str]],
    recipe: Recipe,
    seed: int = 0,
    hold: Neurons | None = None,
    measured: dict[str, str] | None = None,
    allow_measured: bool = False,
    about: dict[str, Any] | None = None,
    anchored: Anchored | HeldMargins | None = None,
    processes: int = 1,
    sharded: bool = False,
) -> Run:
    """Fine-tune from `model`. `measured`: id -> question of every probe, to find them among the training prompts.

    `processes` share every batch, `sharded` the weights too: see harness/distributed.py.

    Raises:
        InputError: measured questions in the training data or among the anchor's prompts, unless allowed; more `processes`
            than can share the work.
    """
    folder = resolve(model)
    prompts = [{"prompt": prompt} for prompt in anchored.prompts] if anchored else []
    overlap = measured_prompts_in([*pairs, *prompts], measured or {})
    if overlap and not allow_measured:
        raise InputError(
            f"{len(overlap)} questions that the probes measure stand in the training data (first: {overlap[0]}). What is "
            "trained on cannot measure generalisation: remove them, or give --allow-measured and read on-topic figures so."
        )
    if hold is not None:
        check_neurons(hold, folder)
    spec = {
        "model": title(model),
        "weights": weights_hash(folder),
        "data": digest(pairs),
        "examples": len(pairs),
        "recipe": recipe.model_dump(),
        "seed": seed,
        "hold": digest(hold.mask.flatten().nonzero().flatten().tolist()) if hold is not None else None,
        "hold_site": hold.site if hold is not None else None,
        **(about or {}),
    }
    if anchored is not None:
        spec["anchor"] = {**anchored.settings.model_dump(), "texts": digest(texts(anchored))}
    check_processes(recipe, processes, sharded, anchored is not None)
    if processes > 1:
        spec |= {"processes": processes, **({"sharded": True} if sharded else {})}
    run = open_run(out, "tune", spec)
    if run.complete:
        return run
    make_room()
    if processes > 1:
        tune_in(processes, sharded, run, folder, pairs, recipe, seed, hold)
    else:
        tune(run, folder, pairs, recipe, seed, hold, anchored)
    run.notes["lineage"] = lineage(folder)
    run.notes["measured_prompts_in_training"] = overlap
    run.finish()
    return run


def patch_step(
    out: Path,
    recipient: Variant,
    donor: Variant,
    neurons: Neurons,
    asked: Asked,
    chat: str = "auto",
    settings: engines.Settings | None = None,
    about: dict[str, Any] | None = None,
) -> Run:
    """Measure the recipient with the donor's activations at the neurons, on the Torch engine."""
    settings = settings or engines.Settings()
    chosen = digest(neurons.mask.flatten().nonzero().flatten().tolist())
    spec = {
        **recipient.spec(),
        "donor": donor.spec(),
        "patched": {"neurons": len(neurons), "site": neurons.site, "set": chosen[:16]},
        **_asked_spec(asked, chat),
        "engine": "torch",
        "dtype": settings.dtype,
        **(about or {}),
    }
    run = open_run(out, "measure", spec)
    if run.complete:
        return run
    from plugins.patching import patched_engine

    make_room()
    engine = patched_engine(recipient.folder(), donor.folder(), neurons, settings)
    patch = engine.patch
    assert patch is not None
    try:
        results, samples = measure(engine, replace(asked, chat=uses_chat(engine.tokenizer, chat)))
        patch.prove()
    finally:
        engine.close()
    run.notes["effect"] = {"activations": patch.effect.values, "largest_change": patch.effect.largest}
    _save(run, results, samples, asked.judge)
    return run
