"""The whole method as numbered steps, each a run folder: starting again does only what is missing.

measure the base, and again in another order (noise floor); then per tuned topic: tune, measure, localise, patch (none,
general, specific, random), tune again from the base with general neurons held (InhibitFT) and with random neurons held,
measure each; at the end compare all measurements.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from harness import engines, steps
from harness.compare import Comparison, compare, load_runs
from harness.config import Experiment
from harness.errors import InputError, choices
from harness.finetune import topic_pairs
from harness.graph import TWO, Needs, Numbered, Step
from harness.lmeval.roots import all_roots
from harness.localize import localize_step
from harness.measure import Asked, check_tasks
from harness.mitigation import Material, Training
from harness.neurons import Neurons
from harness.runs import Run
from harness.sites import check_mlp_site
from harness.topics import Topic, find_topics
from harness.variants import Variant, tuned_variant
from harness.work import measuring, tuning

NOISE_SEED = 1


@dataclass
class Study(Numbered):
    """An experiment being carried out in a folder."""

    config: Experiment
    out: Path
    topics: dict[str, Topic]
    measured: list[Step] = field(default_factory=list)
    localizations: list[Step] = field(default_factory=list)

    def reads(self) -> tuple[str, ...]:
        """See `Declared`."""
        return (self.config.model, *map(str, self.config.measure.topics_dir))

    @property
    def base(self) -> Variant:
        return Variant(self.config.model)

    @property
    def asked(self) -> Asked:
        return self.config.measure.asked

    @property
    def settings(self) -> engines.Settings:
        return self.config.measure.served

    def measure(
        self, label: str, role: str, tuned: Step | None = None, asked: Asked | None = None, **about: Any
    ) -> None:
        """One measurement of the base or of a fine-tune of it, under the experiment's settings."""
        m = self.config.measure
        said = {"label": label, "role": role, "reference": None if role == "base" else "base", **about}
        work = measuring(self.config.model, asked or self.asked, m.chat_template, m.engine, self.settings, said)
        after = [] if tuned is None else [tuned]
        self.measured.append(self.step(f"measure-{label}", work, *after, needs=Needs(m.tensor_parallel)))


def prepare(config: Experiment, out: Path) -> Study:
    """Check everything that can be known before a model is loaded.

    Raises:
        InputError: unknown task, topic, judge or model, a share outside (0, 1], or a site that cannot be held.
    """
    check_tasks(Study(config, out, {}).asked)
    topics = find_topics([*all_roots(), *config.measure.topics_dir])
    if unknown := [t for t in config.train.topics if t not in topics]:
        raise InputError(f"There is no topic {choices(unknown)} to tune on; topics: {choices(topics)}.")
    if empty := [t for t in config.train.topics if not topics[t].split("train")]:
        raise InputError(f"Topic {choices(empty)} has no items with split: train, so there is nothing to tune on.")
    if config.inhibit:
        check_mlp_site(config.localize.site, "inhibit")
    for share in config.inhibit.shares if config.inhibit else []:
        if not 0 < share <= 1:
            raise InputError(f"inhibit.shares holds {share}; expected above 0 and at most 1 (0.05 is 5%).")
    Variant(config.model).check()
    return Study(config, out, topics)


def run(config: Experiment, out: Path) -> Comparison:
    """Carry out the experiment in `out` and compare its measurements."""
    study = prepare(config, out)
    study.measure("base", "base")
    study.measure("base-again", "noise", asked=replace(study.asked, order_seed=NOISE_SEED))
    for topic in config.train.topics:
        _one_topic(study, topic)
    study.carry_out()
    runs = load_runs([step.path for step in study.measured if step.path.is_dir()])
    return compare(runs, f"{config.name}: {config.model}", _localization(study))


def _one_topic(study: Study, topic: str) -> None:
    config, name, where = study.config, _suffix(study.config, topic), study.config.localize
    model, topics, side, chat = (
        config.model,
        list(study.topics.values()),
        config.train.side,
        config.measure.chat_template,
    )
    tuned = _tune(study, f"tune{name}", topic)
    study.measure(f"tuned{name}", "tuned", tuned, on_topic=topic)
    if config.patch is None and config.inhibit is None:
        return

    def localized(out: Path, tuned: Path) -> Run:
        return localize_step(
            out,
            Variant(model),
            tuned_variant(model, tuned),
            topics,
            where.site,
            where.tokens,
            where.top,
            where.normalized,
            where.prompts,
            side,
            chat,
            where.precision,
        )

    located = study.step(f"localize{name}", localized, tuned, needs=TWO)
    study.localizations.append(located)
    if config.patch is not None:
        _patch(study, topic, tuned, located)
    if config.inhibit is not None:
        _inhibit(study, topic, located)


def _tune(study: Study, name: str, topic: str, located: Step | None = None, held: Holding | None = None) -> Step:
    train = study.config.train
    plain = Training(topic_pairs(study.topics[topic].split("train"), train.side), train.recipe)
    said = {"on_topic": topic, "side": train.side, **({} if held is None else held.about)}

    def trained(*made: Path) -> Training:
        return plain if held is None else held.on(plain, train.seed, *made)

    folders, shared = study.config.measure.topics_dir, (train.processes, train.sharded)
    work = tuning(study.config.model, trained, train.seed, folders, said, *shared)
    after = [] if located is None else [located]
    return study.step(name, work, *after, needs=Needs.training(train.recipe, *shared))


def _patch(study: Study, topic: str, tuned: Step, located: Step) -> None:
    settings = study.config.patch
    assert settings is not None
    name, model, served = _suffix(study.config, topic), study.config.model, study.settings
    asked = replace(study.asked, tasks=tuple(settings.tasks), limit=settings.limit)
    chat = study.config.measure.chat_template
    for kind in ("none", "general", "specific", *(f"random-{seed}" for seed in settings.random_seeds)):
        label = f"patch-{kind}{name}"
        # The empty patch is the same model on the same engine and items: what the other patches are compared with.
        about = {
            "label": label,
            "role": "patched",
            "reference": f"patch-none{name}",
            "on_topic": topic,
            "patch": kind,
        }

        def work(out: Path, tuned: Path, located: Path, kind: str = kind, about: dict[str, Any] = about) -> Run | None:
            neurons = _patched(located, kind, topic)
            if neurons is None:
                return None
            donor = tuned_variant(model, tuned)
            return steps.patch_step(out, Variant(model), donor, neurons, asked, chat, served, about)

        study.measured.append(study.step(label, work, tuned, located, needs=TWO))


def _patched(located: Path, kind: str, topic: str) -> Neurons | None:
    """The neurons that a patch of this kind moves; None where the topic has no specific ones."""
    if kind == "specific":
        specific = Neurons.load(located / f"specific-{topic}.safetensors")
        return specific if len(specific) else None
    general = Neurons.load(located / "general.safetensors")
    if kind == "none":
        return replace(general, mask=torch.zeros_like(general.mask))
    return general if kind == "general" else general.random_like(int(kind.removeprefix("random-")), exclude=general)


@dataclass(frozen=True)
class Holding:
    """A fine-tune with a share of the general neurons held, or with as many random ones under a seed."""

    share: float
    seed: int | None

    @property
    def about(self) -> dict[str, Any]:
        return {"share": self.share, "control_seed": self.seed}

    def on(self, plain: Training, seed: int, located: Path) -> Training:
        """The fine-tune that is carried out instead of the plain one."""
        from plugins import mitigation

        options = {"share": self.share} if self.seed is None else {"share": self.share, "seed": self.seed}
        made = mitigation("inhibitft" if self.seed is None else "random_control", options)
        general = Neurons.load(located / "general.safetensors")
        return made(plain, Material(seed, neurons=lambda _: general))


def _inhibit(study: Study, topic: str, located: Step) -> None:
    settings = study.config.inhibit
    assert settings is not None
    name = _suffix(study.config, topic)
    plan = [Holding(share, None) for share in settings.shares]
    plan += [Holding(share, seed) for share in settings.shares for seed in settings.random_seeds]
    for held in plan:
        label = f"{'inhibited' if held.seed is None else 'random'}-{100 * held.share:g}%{name}"
        label += "" if held.seed is None else f"-{held.seed}"
        trained = _tune(study, f"tune-{label}", topic, located, held)
        role = "inhibited" if held.seed is None else "control"
        study.measure(label, role, trained, on_topic=topic, **held.about)


def _suffix(config: Experiment, topic: str) -> str:
    return "" if len(config.train.topics) == 1 else f"-{topic}"


def _localization(study: Study) -> dict[str, Any] | None:
    """The localisation's own description, where there is one (of the first topic when there are several)."""
    if not study.localizations:
        return None
    from plugins.pnlac_report import read

    return read(study.localizations[0].path)
