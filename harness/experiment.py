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
from harness.compare import Comparison, Measured, compare, load_runs
from harness.config import Experiment
from harness.errors import InputError, choices
from harness.finetune import topic_pairs
from harness.lmeval.roots import all_roots
from harness.localize import localize_step
from harness.measure import Asked, check_tasks
from harness.mitigation import Material, Training
from harness.neurons import Neurons
from harness.runs import Run
from harness.sites import check_mlp_site
from harness.topics import Topic, find_topics
from harness.training_data import measured_questions
from harness.variants import Variant, tuned_variant

NOISE_SEED = 1


@dataclass
class Study(steps.Numbered):
    """An experiment being carried out in a folder."""

    config: Experiment
    out: Path
    topics: dict[str, Topic]
    measured: list[Path] = field(default_factory=list)
    localizations: list[Path] = field(default_factory=list)

    @property
    def base(self) -> Variant:
        return Variant(self.config.model)

    @property
    def asked(self) -> Asked:
        return self.config.measure.asked

    @property
    def settings(self) -> engines.Settings:
        return self.config.measure.served

    def measure(self, label: str, role: str, variant: Variant, asked: Asked | None = None, **about: Any) -> None:
        """One measurement of a variant under the experiment's settings."""
        m = self.config.measure
        said = {"label": label, "role": role, "reference": None if role == "base" else "base", **about}
        run = self.step(
            f"measure-{label}",
            lambda out: steps.measure_step(
                out, variant, asked or self.asked, m.chat_template, m.engine, self.settings, said
            ),
        )
        self.measured.append(run.path)


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
    study.measure("base", "base", study.base)
    study.measure("base-again", "noise", study.base, replace(study.asked, order_seed=NOISE_SEED))
    for topic in config.train.topics:
        _one_topic(study, topic)
    runs = load_runs(study.measured)
    return compare(runs, f"{config.name}: {config.model}", _localization(study, runs))


def _one_topic(study: Study, topic: str) -> None:
    config, name = study.config, _suffix(study.config, topic)
    tuned_run = _tune(study, f"tune{name}", topic, None)
    tuned = tuned_variant(config.model, tuned_run.path)
    study.measure(f"tuned{name}", "tuned", tuned, on_topic=topic)
    if config.patch is None and config.inhibit is None:
        return
    where = config.localize
    located = study.step(
        f"localize{name}",
        lambda out: localize_step(
            out,
            study.base,
            tuned,
            list(study.topics.values()),
            where.site,
            where.tokens,
            where.top,
            where.normalized,
            where.prompts,
            config.train.side,
            config.measure.chat_template,
            where.precision,
        ),
    )
    study.localizations.append(located.path)
    general = Neurons.load(located.path / "general.safetensors")
    if config.patch is not None:
        _patch(study, topic, tuned, general, located.path)
    if config.inhibit is not None:
        _inhibit(study, topic, general)


def _tune(study: Study, name: str, topic: str, hold: Neurons | None, **about: Any) -> Run:
    train = study.config.train
    pairs = topic_pairs(study.topics[topic].split("train"), train.side)
    measured = measured_questions(study.config.measure.topics_dir)
    said = {"on_topic": topic, "side": train.side, **about}
    return study.step(
        name,
        lambda out: steps.tune_step(
            out, study.config.model, pairs, train.recipe, train.seed, hold, measured, about=said
        ),
    )


def _patch(study: Study, topic: str, tuned: Variant, general: Neurons, located: Path) -> None:
    settings = study.config.patch
    assert settings is not None
    name = _suffix(study.config, topic)
    specific = Neurons.load(located / f"specific-{topic}.safetensors")
    sets = {"none": replace(general, mask=torch.zeros_like(general.mask)), "general": general}
    if len(specific):
        sets["specific"] = specific
    for seed in settings.random_seeds:
        sets[f"random-{seed}"] = general.random_like(seed, exclude=general)
    asked = replace(study.asked, tasks=tuple(settings.tasks), limit=settings.limit)
    for kind, neurons in sets.items():
        label = f"patch-{kind}{name}"
        # The empty patch is the same model on the same engine and items: what the other patches are compared with.
        about = {
            "label": label,
            "role": "patched",
            "reference": f"patch-none{name}",
            "on_topic": topic,
            "patch": kind,
        }
        done = study.step(
            label,
            lambda out, neurons=neurons, about=about: steps.patch_step(
                out, study.base, tuned, neurons, asked, study.config.measure.chat_template, study.settings, about
            ),
        )
        study.measured.append(done.path)


def _inhibit(study: Study, topic: str, general: Neurons) -> None:
    from plugins import mitigation

    settings = study.config.inhibit
    assert settings is not None
    name = _suffix(study.config, topic)
    train = study.config.train
    plain = Training(topic_pairs(study.topics[topic].split("train"), train.side), train.recipe)
    plan = [("inhibitft", "inhibited", share, None) for share in settings.shares]
    plan += [("random_control", "control", share, s) for share in settings.shares for s in settings.random_seeds]
    for plugin, role, share, seed in plan:
        label = f"{'inhibited' if seed is None else 'random'}-{100 * share:g}%{name}"
        label += "" if seed is None else f"-{seed}"
        options = {"share": share} if seed is None else {"share": share, "seed": seed}
        made = mitigation(plugin, options)(plain, Material(train.seed, neurons=lambda _: general))
        about = {"share": share, "control_seed": seed}
        trained = _tune(study, f"tune-{label}", topic, made.hold, **about)
        variant = tuned_variant(study.config.model, trained.path)
        study.measure(label, role, variant, on_topic=topic, **about)


def _suffix(config: Experiment, topic: str) -> str:
    return "" if len(config.train.topics) == 1 else f"-{topic}"


def _localization(study: Study, runs: list[Measured]) -> dict[str, Any] | None:
    """The localisation's own description, where there is one (of the first topic when there are several)."""
    if not study.localizations:
        return None
    from plugins.pnlac_report import read

    return read(study.localizations[0])
