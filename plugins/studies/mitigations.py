"""Mitigations side by side: every one on the same fine-tunes, beside the plain one, its control and the noise floor.

A cell is one fine-tune: a topic, a side and a seed. In every cell the base is fine-tuned plainly and once per mitigation, and
all of them are measured on the same questions. Mitigations may draw on the training questions of the topics in `seen`;
spill-over is counted on the topics that no training of the cell saw. plugins/studies/spillover.py has the arithmetic.

    stance run experiments/mitigations.yaml
"""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from harness.analysis import Analysis
from harness.errors import InputError, choices
from harness.experiment import NOISE_SEED
from harness.lmeval.roots import all_roots
from harness.measure import check_pairs_alone, check_tasks
from harness.plan import PlannedStep
from harness.planner import Planner
from harness.report.sheet import Sheet
from harness.runs import digest
from harness.sites import check_mlp_site
from harness.topics import Topic, all_topics
from harness.variants import Variant
from plugins import mitigation
from plugins.mitigation_cells import CellRun, Study, slug
from plugins.mitigation_settings import Settings
from plugins.studies.pareto import sheet
from plugins.studies.spillover import PLAIN, Cell, read_shifts


def prepare(settings: Settings, out: Path) -> Study:
    """Check everything that can be known before a model is loaded.

    Raises:
        InputError: unknown task, topic, model, mitigation or option; a label twice; a control that is no label; a topic that
            is trained on and seen; a mitigation that draws on a topic that is not seen.
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
    study = Study(settings, out, topics, {c.label: mitigation(c.use, c.options) for c in settings.mitigations})
    _check_drawn_on(settings, topics)
    check_tasks(study.asked)
    check_pairs_alone(study.asked, "mitigations")
    Variant(settings.model).check()
    return study


def _check_drawn_on(settings: Settings, topics: dict[str, Topic]) -> None:
    """Refuse a mitigation that draws on a topic which is counted as unseen."""
    for candidate in settings.mitigations:
        named = candidate.options.get("topics") or []
        drawn = [name for name in named if name in topics and not topics[name].control]
        for trained in settings.train.topics:
            if odd := [name for name in drawn if name not in (trained, *settings.seen[trained])]:
                raise InputError(
                    f"mitigations: {candidate.label!r} draws on {choices(odd)}, which `seen` does not list for {trained}, so "
                    "the spill-over there would be counted as unseen; list it in `seen`, or leave it out of `topics`."
                )


def run(settings: Settings, out: Path) -> Sheet:
    """Carry out every cell, seeds outermost, and set the mitigations side by side."""
    study, train = prepare(settings, out), settings.train
    base = study.measure(out / "base", "base")
    again = replace(study.asked, order_seed=NOISE_SEED)
    noise = study.measure(out / "base-again", "base-again", asked=again)
    cells = _cells(settings)
    declared = {cell: CellRun(study, cell).declare() for cell in cells}
    study.carry_out()
    runs = {cell: {label: step.path for label, step in made.items()} for cell, made in declared.items()}
    shifts = read_shifts(base.path, noise.path, runs, settings.seen)
    controls = {c.label: c.control for c in settings.mitigations}
    about = {
        "model": settings.model,
        "cells": len(cells),
        "training questions per topic": train.questions or "all",
        "recipe": train.recipe.model_dump(exclude_defaults=True),
        "seen": settings.seen,
        "items per topic and task": settings.measure.limit or "all",
        "settings": digest(settings.model_dump())[:16],
    }
    return replace(sheet(shifts, controls, about), limit=settings.measure.limit)


def _cells(settings: Settings) -> list[Cell]:
    train = settings.train
    return [Cell(t, side, seed) for seed in train.seeds for t in train.topics for side in train.sides]


def plan(settings: Settings, planner: Planner) -> list[PlannedStep]:
    """Every run folder; how often neurons are localised follows from what the mitigations ask for."""
    m, planner = settings.measure, planner.with_chat(settings.measure.chat_template)
    topics = all_topics([*all_roots(), *m.topics_dir])
    study = Study(settings, Path(), topics, {c.label: mitigation(c.use, c.options) for c in settings.mitigations})
    base = planner.measured("measure base", "base", study.asked, m.engine, m.dtype)
    again = replace(study.asked, order_seed=NOISE_SEED)
    steps = [base, planner.measured("measure base again", "base-again", again, m.engine, m.dtype)]
    for cell in _cells(settings):
        steps += _planned(CellRun(study, cell), planner, base)
    return steps


def _planned(run: CellRun, planner: Planner, measured: PlannedStep) -> list[PlannedStep]:
    """One cell: its fine-tunes, what is localised in the plain one, and the measurements."""
    settings, where, trainings = run.study.settings, run.study.settings.localize, list(run.trainings())
    made = {PLAIN: run.plain, **{label: training for label, training, _ in trainings}}
    kinds = {kind for _, _, asked_for in trainings for kind in asked_for}
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
