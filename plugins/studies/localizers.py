"""Localisers side by side on one model and its fine-tune: do they find the same neurons, and do those carry the shift?

Fine-tune (or take one), score every neuron by every localiser on the same training questions, then suppress each one's top
shares in the fine-tune and patch them into the base, always beside as many random neurons of the same layers. Scores are in
plugins/localizer_scores.py, overlaps in localizer_overlap.py, effects in dose_response.py.

    stance run experiments/localizers.yaml
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from harness.analysis import Analysis
from harness.errors import InputError, choices
from harness.experiment import NOISE_SEED
from harness.finetune import topic_pairs
from harness.graph import Step
from harness.lmeval.roots import all_roots
from harness.measure import Asked, check_pairs_alone, check_tasks
from harness.mitigation import Training
from harness.models import weights_hash
from harness.neurons import Neurons
from harness.plan import BACKWARD, Pass, PlannedStep
from harness.planner import Planner, numbered
from harness.report.sheet import Sheet
from harness.topics import all_topics
from plugins.dose_response import Dose, Responses, effects, noise_floor, read_values
from plugins.localizer_overlap import agreement, layers, stability, top_set
from plugins.localizer_scores import NAMES, SITE
from plugins.localizer_settings import Settings
from plugins.localizer_sheet import Found, sheet
from plugins.localizer_steps import Study


def prepare(settings: Settings, out: Path) -> Study:
    """Check everything that can be known before a model is loaded.

    Raises:
        InputError: an unknown task, topic or model, too few training items, shares outside (0, 1], a name or seed twice, or
            not exactly one of `tune` and `tuned`.
    """
    topics = all_topics([*all_roots(), *settings.measure.topics_dir])
    if settings.topic not in topics:
        raise InputError(f"There is no topic {settings.topic!r}; topics: {choices(topics)}.")
    topic = topics[settings.topic]
    if len(topic.split("train")) < 4:
        raise InputError(f"Topic {settings.topic} has {len(topic.split('train'))} training items; expected 4 or more.")
    if (settings.tune is None) == (settings.tuned is None):
        raise InputError("Give exactly one of `tune` (a fine-tune to make) and `tuned` (the folder of one).")
    plans = [settings, *([settings.patch] if settings.patch else [])]
    if wrong := [share for plan in plans for share in plan.shares if not 0 < share <= 1]:
        raise InputError(f"shares holds {choices(wrong)}; expected above 0 and at most 1 (0.02 is 2% of all neurons).")
    listed: list[list[Any]] = [settings.localizers, *(x for plan in plans for x in (plan.shares, plan.random_seeds))]
    if twice := [x for some_list in listed for x in set(some_list) if some_list.count(x) > 1]:
        raise InputError(f"{choices(twice)} stands twice in one list; give every localiser, share and seed once.")
    study = Study(settings, out, topic)
    check_tasks(study.asked)
    check_pairs_alone(study.asked, "localizers")
    if settings.patch is not None and settings.patch.tasks is not None:
        check_pairs_alone(replace(study.asked, tasks=tuple(settings.patch.tasks)), "localizers")
    study.base.check()
    if settings.tuned is not None:
        study.tuned().variant().check()
    return study


def run(settings: Settings, out: Path) -> Sheet:
    """Carry out the comparison in `out`."""
    study = prepare(settings, out)
    tuned = study.tuned()
    scored = study.score(tuned)
    study.measure("base")
    study.measure("base-again", asked=replace(study.asked, order_seed=NOISE_SEED))
    study.measure("tuned", tuned)
    study.carry_out()
    scores = _scores(scored.path)
    model = weights_hash(study.base.folder())

    def sets_of(doses: list[Dose]) -> dict[Dose, Neurons]:
        made = {}
        for dose in doses:
            own = top_set(scores["whole"][dose.localizer], dose.share, model)
            made[dose] = own if dose.seed is None else own.random_like(dose.seed, exclude=own)
        return made

    suppressed = sets_of(study.doses("suppress", settings.shares, settings.random_seeds))
    study.suppress(tuned, suppressed)
    patches: dict[str, Step] = {}
    chosen: dict[Dose, Neurons] = {}
    if settings.patch is not None:
        chosen = sets_of(study.doses("patch", settings.patch.shares, settings.patch.random_seeds))
        empty = Neurons(torch.zeros_like(next(iter(chosen.values())).mask), SITE, model)
        patches = study.patch(tuned, {"patch-none": empty, **{dose.label: neurons for dose, neurons in chosen.items()}})
    study.carry_out()
    responses = Responses({label: read_values(step.path) for label, step in study.values.items()})
    floor = noise_floor(responses, "base", "base-again")
    counts = {dose: len(neurons) for dose, neurons in suppressed.items()}
    table = effects(responses, list(suppressed), "tuned", counts, floor)
    patched = None
    if patches:
        own = Responses({label: read_values(step.path) for label, step in patches.items()})
        patched = effects(own, list(chosen), "patch-none", {dose: len(n) for dose, n in chosen.items()}, floor)
    share, whole = settings.overlap_share, scores["whole"]
    found = Found(
        agreement(whole, share),
        stability(scores["first"], scores["second"], share),
        layers(whole, share),
        {o: responses.change("tuned", "base", o).estimate() for o in responses.outcomes},
        floor,
        table,
        patched,
    )
    page = sheet(
        settings.name,
        settings.model,
        found,
        settings.topic,
        share,
        settings.model_dump(mode="json", exclude_defaults=True),
    )
    return replace(page, limit=settings.measure.limit)


def _scores(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """`whole`, and two halves of the questions, each localiser -> scores [l, m]."""
    kept = load_file(folder / "scores.safetensors")
    return {part: {name: kept[f"{part}/{name}"] for name in NAMES} for part in ("whole", "first", "second")}


def plan(settings: Settings, planner: Planner) -> list[PlannedStep]:
    """Every run folder. The scores' figure counts all localisers on the questions and on their two halves."""
    planner = planner.with_chat(settings.measure.chat_template)
    topic = all_topics([*all_roots(), *settings.measure.topics_dir])[settings.topic]
    return numbered(_planned(Study(settings, Path(), topic), planner))


def _planned(study: Study, planner: Planner) -> Iterator[PlannedStep]:
    s, m, counts = study.settings, study.settings.measure, planner.counts
    if s.tune is not None:
        pairs = topic_pairs(study.topic.split("train")[: s.tune.questions], s.side)
        yield planner.tuned("tune", "tune", Training(pairs, s.tune.recipe), s.tune.seed)
    items = study.topic.split("train")[: s.prompts]
    asked = sum(counts.prompt(i.question) for i in items)
    answered = sum(2 * counts.prompt(i.question) + counts.text(i.left) + counts.text(i.right) for i in items)
    parts, kinds = 2, 2  # all questions and their two halves; two scores of NeuronLens
    passes = (
        Pass(parts * (2 * asked + kinds * answered)),
        Pass(parts * planner.gradient_tokens(items), BACKWARD),
    )
    writes = planner.cost.neurons(3 * len(NAMES))
    yield PlannedStep("scores", "localizers", "scores", parts * len(items), passes, writes=writes)

    def measured(name: str, folder: str, asked: Asked = study.asked, **more: Any) -> PlannedStep:
        return planner.measured(name, folder, asked, m.engine, m.dtype, **more)

    yield measured("measure base", "base")
    yield measured("measure base again", "base-again", replace(study.asked, order_seed=NOISE_SEED))
    merged = s.tune is not None and s.tune.recipe.mode == "lora"
    yield measured("measure tuned", "tuned", merged=merged)
    for dose in study.doses("suppress", s.shares, s.random_seeds):
        yield measured(f"suppress {'random' if dose.seed is not None else dose.localizer}", dose.label)
    if s.patch is not None:
        some = replace(study.asked, tasks=tuple(s.patch.tasks or m.tasks))
        doses = study.doses("patch", s.patch.shares, s.patch.random_seeds)
        for label in ["patch-none", *(dose.label for dose in doses)]:
            yield planner.measured("patch", label, some, "torch", m.dtype, models=2)


ANALYSIS = Analysis(Settings, run, prepare, plan)
