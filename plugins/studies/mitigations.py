"""Mitigations side by side: every one on the same fine-tunes, beside the plain one, its control and the noise floor.

A cell is one fine-tune: a topic, a side and a seed. In every cell the base is fine-tuned plainly and once per mitigation, and
all of them are measured on the same questions. Mitigations may draw on the training questions of the topics in `seen`;
spill-over is counted on the topics that no training of the cell saw. plugins/studies/spillover.py has the arithmetic.

    stance run experiments/mitigations.yaml
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from itertools import count
from pathlib import Path

from harness import steps
from harness.analysis import Analysis
from harness.errors import InputError, choices
from harness.experiment import NOISE_SEED
from harness.finetune import topic_pairs
from harness.lmeval.roots import all_roots
from harness.localize import localize_step
from harness.measure import Asked, check_tasks
from harness.mitigation import Material, Mitigation, NeuronKind, Training
from harness.neurons import Neurons
from harness.plan import PlannedStep
from harness.planner import Planner, some_neurons
from harness.report.sheet import Sheet
from harness.runs import Run, digest
from harness.sites import check_mlp_site
from harness.topics import Topic, all_topics
from harness.training_data import measured_questions
from harness.variants import Variant, tuned_variant
from plugins import mitigation
from plugins.mitigation_settings import Settings
from plugins.studies.pareto import sheet
from plugins.studies.spillover import PLAIN, Cell, read_shifts


@dataclass(frozen=True)
class _Study:
    settings: Settings
    out: Path
    topics: dict[str, Topic]
    candidates: dict[str, Mitigation]
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def step(self, name: str, work: Callable[[], Run]) -> Path:
        return steps.announce(next(self.numbers), name, work).path

    @property
    def asked(self) -> Asked:
        return self.settings.measure.asked

    def measure(self, folder: Path, label: str, variant: Variant, asked: Asked | None = None) -> Path:
        m = self.settings.measure
        about = {"label": label, "reference": None if label == "base" else "base"}
        name = label if folder.parent == self.out else f"{folder.parent.name} measure {label}"
        return self.step(
            name,
            lambda: steps.measure_step(
                folder, variant, asked or self.asked, m.chat_template, m.engine, m.served, about
            ),
        )


@dataclass(frozen=True)
class _CellRun:
    """One cell: its plain fine-tune, what is found in it, and the fine-tunes that a mitigation makes of it."""

    study: _Study
    cell: Cell

    @property
    def out(self) -> Path:
        return self.study.out / str(self.cell)

    @cached_property
    def plain(self) -> Training:
        train = self.study.settings.train
        items = self.study.topics[self.cell.topic].split("train")[: train.questions]
        return Training(topic_pairs(items, self.cell.side), train.recipe)

    def tuned(self, label: str, training: Training) -> Variant:
        model = self.study.settings.model
        measured = measured_questions(self.study.settings.measure.topics_dir)
        about = {"on_topic": self.cell.topic, "side": self.cell.side, "mitigation": label}
        path = self.study.step(
            f"{self.cell} tune {label}",
            lambda: steps.tune_step(
                self.out / f"tune-{slug(label)}",
                model,
                training.pairs,
                training.recipe,
                self.cell.seed,
                training.hold,
                measured,
                about=about,
                anchored=training.anchored,
            ),
        )
        return tuned_variant(model, path)

    @cached_property
    def tuned_plainly(self) -> Variant:
        return self.tuned(PLAIN, self.plain)

    def neurons(self, kind: NeuronKind) -> Neurons:
        """Neurons found in the plain fine-tune, or by gradients in the base."""
        if kind == "gradient":
            return self._by_gradient
        folder = self._localized(kind == "normalized")
        name = f"specific-{self.cell.topic}" if kind == "specific" else "general"
        return Neurons.load(folder / f"{name}.safetensors")

    def _localized(self, normalized: bool) -> Path:
        where, study = self.study.settings.localize, self.study
        topics = [topic for topic in study.topics.values() if not topic.control]
        return localize_step(
            self.out / f"localize{'-normalized' if normalized else ''}",
            Variant(study.settings.model),
            self.tuned_plainly,
            topics,
            site=where.site,
            tokens=where.tokens,
            top=where.top,
            normalized=normalized,
            prompts=where.prompts,
            side=self.cell.side,
            chat=study.settings.measure.chat_template,
            precision=where.precision,
        ).path

    @cached_property
    def _by_gradient(self) -> Neurons:
        from plugins.stance_gradients import stance_gradients

        base = Variant(self.study.settings.model).folder()
        topic, limit = self.study.topics[self.cell.topic], self.study.settings.localize.prompts
        chat = self.study.settings.measure.chat_template
        return stance_gradients(self.out / "gradients", base, [topic], self.cell.side, chat, limit)

    def trainings(self, neurons: Callable[[NeuronKind], Neurons]) -> Iterator[tuple[str, Training]]:
        """What each mitigation of this cell makes of the plain fine-tune, by label."""
        settings = self.study.settings
        material = Material(self.cell.seed, self.study.topics, tuple(settings.seen[self.cell.topic]), neurons)
        for candidate in settings.mitigations:
            if any(fnmatch(str(self.cell), pattern) for pattern in candidate.cells):
                yield candidate.label, self.study.candidates[candidate.label](self.plain, material)

    def run(self) -> dict[str, Path]:
        """Tune all, then measure all, so that one engine serves the cell's variants; label -> measurement."""
        made = {PLAIN: self.tuned_plainly}
        for label, training in self.trainings(self.neurons):
            made[label] = self.tuned(label, training)
        return {
            label: self.study.measure(self.out / f"measure-{slug(label)}", label, variant)
            for label, variant in made.items()
        }


def slug(label: str) -> str:
    """A label as part of a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("%", "pct")).strip("-")


def prepare(settings: Settings, out: Path) -> _Study:
    """Check everything that can be known before a model is loaded.

    Raises:
        InputError: unknown task, topic, model, mitigation or option; a label twice; a control that is no label; a topic that
            is trained on and seen.
    """
    topics = all_topics([*all_roots(), *settings.measure.topics_dir])
    named = [*settings.train.topics, *(name for names in settings.seen.values() for name in names)]
    if unknown := sorted({name for name in named if name not in topics}):
        raise InputError(f"There is no topic {choices(unknown)}; topics: {choices(topics)}.")
    if empty := sorted({name for name in named if not topics[name].split("train")}):
        raise InputError(f"Topic {choices(empty)} has no items with split: train, so nothing can be trained on it.")
    if lacking := [name for name in settings.train.topics if name not in settings.seen]:
        raise InputError(f"`seen` says nothing of {choices(lacking)}; give the topics its mitigations may draw on.")
    if own := [name for name in settings.train.topics if name in settings.seen[name]]:
        raise InputError(f"`seen` lists {choices(own)} for itself; give other topics.")
    labels = [candidate.label for candidate in settings.mitigations]
    slugs = [PLAIN, *map(slug, labels)]
    if wrong := [label for label in labels if slugs.count(slug(label)) > 1 or not slug(label)]:
        raise InputError(f"mitigations: the label {choices(wrong)} is empty, {PLAIN!r}, or too like another one.")
    train = settings.train
    cells = [str(Cell(t, side, seed)) for t in train.topics for side in train.sides for seed in train.seeds]
    nowhere = [p for c in settings.mitigations for p in c.cells if not any(fnmatch(cell, p) for cell in cells)]
    if nowhere:
        raise InputError(f"mitigations: the pattern {choices(nowhere)} fits no cell; cells: {choices(cells)}.")
    if stray := sorted({c.control for c in settings.mitigations if c.control and c.control not in labels}):
        raise InputError(f"mitigations: control {choices(stray)} is no label; labels: {choices(labels)}.")
    check_mlp_site(settings.localize.site, "mitigations")
    study = _Study(settings, out, topics, {c.label: mitigation(c.use, c.options) for c in settings.mitigations})
    check_tasks(study.asked)
    Variant(settings.model).check()
    return study


def run(settings: Settings, out: Path) -> Sheet:
    """Carry out every cell, seeds outermost, and set the mitigations side by side."""
    study, train = prepare(settings, out), settings.train
    base = Variant(settings.model)
    measured = {"base": study.measure(out / "base", "base", base)}
    again = replace(study.asked, order_seed=NOISE_SEED)
    measured["noise"] = study.measure(out / "base-again", "base-again", base, again)
    cells = _cells(settings)
    runs = {cell: _CellRun(study, cell).run() for cell in cells}
    shifts = read_shifts(measured["base"], measured["noise"], runs, settings.seen)
    controls = {c.label: c.control for c in settings.mitigations}
    about = {
        "model": settings.model,
        "cells": len(cells),
        "training questions per topic": train.questions or "all",
        "recipe": train.recipe.model_dump(exclude_defaults=True),
        "seen": settings.seen,
        "items per topic and task": settings.measure.limit or "all",
        "settings": digest(settings.model_dump())[:16],
        "made by": f"stance run experiments/{settings.name}.yaml",
    }
    return sheet(shifts, controls, about)


def _cells(settings: Settings) -> list[Cell]:
    train = settings.train
    return [Cell(t, side, seed) for seed in train.seeds for t in train.topics for side in train.sides]


def plan(settings: Settings, planner: Planner) -> list[PlannedStep]:
    """Every run folder; how often neurons are localised follows from what the mitigations ask for."""
    m, planner = settings.measure, planner.with_chat(settings.measure.chat_template)
    topics = all_topics([*all_roots(), *m.topics_dir])
    study = _Study(settings, Path(), topics, {c.label: mitigation(c.use, c.options) for c in settings.mitigations})
    base = planner.measured("measure base", "base", study.asked, m.engine, m.dtype)
    again = replace(study.asked, order_seed=NOISE_SEED)
    steps = [base, planner.measured("measure base again", "base-again", again, m.engine, m.dtype)]
    for cell in _cells(settings):
        steps += _planned(_CellRun(study, cell), planner, base)
    return steps


def _planned(run: _CellRun, planner: Planner, measured: PlannedStep) -> list[PlannedStep]:
    """One cell: its fine-tunes, what is localised in the plain one, and the measurements."""
    settings, where, kinds = run.study.settings, run.study.settings.localize, set[NeuronKind]()

    def found(kind: NeuronKind) -> Neurons:
        kinds.add(kind)
        return some_neurons()

    made = {PLAIN: run.plain, **dict(run.trainings(found))}
    merged = settings.train.recipe.mode == "lora" and settings.measure.adapters == "merge"
    weights = planner.cost.weights if merged else 0
    steps = [planner.tuned(f"tune {n}", f"{run.cell}/tune-{slug(n)}", t, run.cell.seed) for n, t in made.items()]
    topics = [topic for topic in run.study.topics.values() if not topic.control]
    side = run.cell.side if where.tokens == "completion" else None
    for end in sorted({"-normalized" if kind == "normalized" else "" for kind in kinds - {"gradient"}}):
        spec = {"site": where.site, "tokens": where.tokens, "top": where.top, "normalized": bool(end)}
        name = f"localize{end}"
        steps.append(
            planner.localized(name, f"{run.cell}/{name}", topics, where.prompts, where.precision, side, **spec)
        )
    if "gradient" in kinds:
        items = run.study.topics[run.cell.topic].split("train")[: where.prompts]
        steps.append(planner.gradients("gradients", f"{run.cell}/gradients", items))
    for label in made:
        folder = f"{run.cell}/measure-{slug(label)}"
        steps.append(replace(measured, name=f"measure {label}", folder=folder, caches=weights))
    return steps


ANALYSIS = Analysis(Settings, run, prepare, plan)
