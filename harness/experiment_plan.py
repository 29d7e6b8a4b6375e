"""The steps of harness/experiment.py before they are carried out, in its order and under its folders' names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.config import Experiment
from harness.experiment import NOISE_SEED, Study
from harness.finetune import topic_pairs
from harness.lmeval.roots import all_roots
from harness.measure import Asked
from harness.mitigation import Training
from harness.plan import PlannedStep
from harness.planner import Planner, numbered
from harness.topics import Topic, find_topics


def plan(config: Experiment, planner: Planner) -> list[PlannedStep]:
    """One step per run folder. Whether specific neurons are patched is known only once there are any; they are counted."""
    topics = find_topics([*all_roots(), *config.measure.topics_dir])
    planner = planner.with_chat(config.measure.chat_template)
    steps = numbered(_steps(config, planner, topics))
    return [replace(step, folder=step.folder.replace("%", "pct")) for step in steps]


def _steps(config: Experiment, planner: Planner, topics: dict[str, Topic]) -> Iterator[PlannedStep]:
    m, asked = config.measure, Study(config, Path(), topics).asked
    merged = config.train.recipe.mode == "lora" and m.adapters == "merge"

    def measured(label: str, asked: Asked = asked, **more: Any) -> PlannedStep:
        return planner.measured(f"measure {label}", f"measure-{label}", asked, m.engine, m.dtype, **more)

    yield measured("base")
    yield measured("base-again", replace(asked, order_seed=NOISE_SEED))
    for topic in config.train.topics:
        end = "" if len(config.train.topics) == 1 else f"-{topic}"
        train = Training(topic_pairs(topics[topic].split("train"), config.train.side), config.train.recipe)
        yield planner.tuned(f"tune{end}", f"tune{end}", train, config.train.seed)
        yield measured(f"tuned{end}", merged=merged)
        if config.patch is None and config.inhibit is None:
            continue
        where = config.localize
        side = config.train.side if where.tokens == "completion" else None
        spec = {"site": where.site, "tokens": where.tokens, "top": where.top, "normalized": where.normalized}
        of = list(topics.values())
        yield planner.localized(f"localize{end}", f"localize{end}", of, where.prompts, where.precision, side, **spec)
        if config.patch is not None:
            some = replace(asked, tasks=tuple(config.patch.tasks), limit=config.patch.limit)
            for kind in ("none", "general", "specific", *(f"random-{seed}" for seed in config.patch.random_seeds)):
                yield planner.measured(f"patch{end}", f"patch-{kind}{end}", some, "torch", m.dtype, models=2)
        if config.inhibit is not None:
            shares, seeds = config.inhibit.shares, config.inhibit.random_seeds
            held = [(f"inhibited-{100 * s:g}%{end}", "inhibited") for s in shares]
            held += [(f"random-{100 * s:g}%{end}-{seed}", "random") for s in shares for seed in seeds]
            for label, kind in held:
                yield planner.tuned(f"tune {kind}{end}", f"tune-{label}", train, config.train.seed)
                yield replace(measured(label, merged=merged), name=f"measure {kind}{end}")
