"""CULNIG as a study (arXiv 2510.08284): which neurons carry a model's knowledge of cultures, and what hangs on them?

Numbered run folders: the base on culture, controls, copying, again in another order, and on the options without the question;
the neuron sets; then a measurement per condition - general neurons suppressed and enhanced, as many random neurons of each
layer and site, one country's neurons, and fine-tunes of the modules with most and with fewest general neurons.

    stance run experiments/culnig.yaml
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from harness import engines, steps
from harness.analysis import Analysis
from harness.engines.lease import make_room
from harness.errors import InputError, choices
from harness.graph import Needs, Numbered, Step
from harness.measure import Asked, check_tasks, uses_chat
from harness.mitigation import Training
from harness.models import device, load_model, load_tokenizer, resolve, weights_hash
from harness.plan import BACKWARD, Pass, PlannedStep
from harness.planner import Planner, numbered
from harness.progress import bar
from harness.recipe import Recipe
from harness.report.sheet import Sheet
from harness.runs import Run, digest, load_measurement, open_run, write_json
from harness.variants import Variant, tuned_variant
from plugins.culnig import Masks
from plugins.culnig_baking import baked
from plugins.culnig_effects import by_item
from plugins.culnig_extra import check_extra, extra_step
from plugins.culnig_findings import Findings
from plugins.culnig_items import culture_folder, read_questions
from plugins.culnig_localise import Material, country_names, localise, material
from plugins.culnig_page import sheet
from plugins.culnig_sets import load, random_like, save, size
from plugins.culnig_settings import Settings, Train
from plugins.culnig_training import Chosen, choose, pairs

CULTURE, CONTROLS, COPYING = "culture", "culture_controls", "culture_copying"


@dataclass
class Study(Numbered):
    """A study being carried out in a folder."""

    settings: Settings
    out: Path
    folder: str
    given: Material
    measured: dict[str, Step] = field(default_factory=dict)
    extra: dict[str, Step] = field(default_factory=dict)
    controls: dict[str, list[str]] = field(default_factory=dict)

    def reads(self) -> tuple[str, ...]:
        """See `Declared`."""
        return (self.folder,)

    @property
    def serving(self) -> engines.Settings:
        return engines.Settings(dtype=self.settings.dtype, max_length=self.settings.max_length)

    def measure(
        self,
        label: str,
        variant: Callable[..., Variant],
        controls: list[str] | None = None,
        after: Sequence[Step] = (),
        **asked: Any,
    ) -> None:
        """Ask the culture, control and copying tasks (or others) of one variant, which is made where it is asked."""
        s, serving = self.settings, self.serving
        wanted = Asked(**{"tasks": (CULTURE, CONTROLS, COPYING), "limit": s.limit, **asked})

        def work(out: Path, *made: Path) -> Run:
            about = {"label": label}
            return steps.measure_step(out, variant(*made), wanted, s.chat_template, s.engine, serving, about)

        def more(out: Path, *made: Path) -> Run:
            folder = variant(*made).folder()
            return extra_step(out, folder, s.tasks_extra, s.limit, s.chat_template, s.engine, serving)

        self.measured[label] = self.step(f"measure-{label}", work, *after)
        if controls is not None:
            self.controls[label] = controls
        if s.tasks_extra and not asked:
            self.extra[label] = self.step(f"extra-{label}", more, *after)

    def scaled(self, verb: str, factor: float, name: str, masks: Masks, **asked: Any) -> None:
        """A set scaled, and as many random neurons of each layer and site."""
        labels = [f"{verb}-{name}-random-{seed}" for seed in self.settings.random_seeds]
        self.measure(f"{verb}-{name}", Scaled(self.folder, masks, factor), labels, **asked)
        for label, seed in zip(labels, self.settings.random_seeds, strict=True):
            self.measure(label, Scaled(self.folder, random_like(masks, seed), factor), **asked)

    def tables(self) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
        """What was measured, by item, and what the extra tasks gave; by label."""
        frames = {label: by_item(load_measurement(step.path)[1]) for label, step in self.measured.items()}
        return frames, {label: pd.read_parquet(step.path / "extra.parquet") for label, step in self.extra.items()}


@dataclass(frozen=True)
class Scaled:
    """The base with neurons scaled in its weights, made when it is asked for."""

    folder: str
    masks: Masks
    factor: float

    def __call__(self) -> Variant:
        return Variant(baked(resolve(self.folder), self.masks, self.factor))


def prepare(settings: Settings, out: Path) -> Study:
    """Check everything that can be known before a model is loaded.

    Raises:
        InputError: an unknown country, model or task, too few items, no control, or a recipe that is not full fine-tuning.
    """
    if unknown := set(settings.specific) - set(country_names()):
        raise InputError(f"specific names {choices(unknown)}; countries with items: {choices(country_names())}.")
    if not settings.random_seeds:
        raise InputError(
            "random_seeds is empty; an effect counts only net of random neurons, so give one or more seeds."
        )
    if settings.train is not None and (settings.train.recipe.mode != "full" or settings.train.recipe.only):
        raise InputError(
            "train.recipe must have mode: full and no `only`; which modules are trained follows from the neurons found."
        )
    given = material(settings.limit, settings.localise.items, settings.localise.copying)
    check_tasks(Asked((CULTURE, CONTROLS, COPYING), settings.limit))
    check_extra(settings.tasks_extra)
    return Study(settings, out, resolve(settings.model), given)


def run(settings: Settings, out: Path) -> Sheet:
    """Carry out the study in `out`.

    Raises:
        InputError: as `prepare`.
        ProofError: scores that are all zero, an intervention or a fine-tune that changes no weight.
    """
    study = prepare(settings, out)
    base = partial(Variant, study.folder)
    study.measure("base", base)
    study.measure("base-again", base, tasks=(CULTURE, CONTROLS, COPYING), order_seed=1)
    every = settings.limit * len(country_names())
    study.measure("base-noquestion", base, tasks=("culture_noquestion",), limit=every)
    located = study.step("localise", partial(_localise, settings, study.folder, study.given))
    study.carry_out()
    found = json.loads((located.path / "localisation.json").read_text(encoding="utf-8"))
    sets = {name: load(located.path / f"{name}.safetensors", weights_hash(study.folder)) for name in found["sets"]}
    study.scaled("suppress", 0.0, "general", sets["general"])
    if settings.enhance is not None:
        study.scaled("enhance", settings.enhance, "general", sets["general"])
    for country in settings.specific:
        if size(sets[f"specific-{country}"]):
            study.scaled("suppress", 0.0, country, sets[f"specific-{country}"], tasks=(CULTURE,))
    trained = [] if settings.train is None else _train(study, settings.train, sets["general"])
    study.carry_out()
    frames, extra = study.tables()
    about = {fine_tune.step.name: fine_tune.described() for fine_tune in trained}
    return sheet(Findings(settings, frames, extra, study.controls, sets, found["probability"], about))


def _localise(s: Settings, model: str, given: Material, path: Path) -> Run:
    folder = resolve(model)
    texts = {name: [q.prompt for q in [*given.culture[name], *given.copying[name]]] for name in given.culture}
    spec = {
        "weights": weights_hash(folder),
        "questions": digest(texts),
        "chat": s.chat_template,
        "specific": s.specific,
        "precision": "float32",
    }
    run = open_run(path, "localise", spec)
    if run.complete:
        return run
    import torch

    make_room()
    loaded, tokenizer = load_model(folder, torch.float32, device()), load_tokenizer(folder)
    total = sum(2 * len(rows) for rows in given.culture.values()) + sum(map(len, given.copying.values()))
    with bar(total=total, what="scoring", unit="item") as progress:
        chat = uses_chat(tokenizer, s.chat_template)
        found = localise(loaded, tokenizer, chat, given, s.specific, progress.update)
    for name, masks in found.sets.items():
        save(masks, path / f"{name}.safetensors", weights_hash(folder))
    sizes = {name: size(masks) for name, masks in found.sets.items()}
    write_json(path / "localisation.json", {"sets": sizes, "probability": found.probability})
    run.notes["sets"] = sizes
    run.finish()
    return run


@dataclass(frozen=True)
class FineTune:
    """One fine-tune of chosen modules: its step, and what was chosen."""

    step: Step
    modules: Chosen
    examples: int

    def described(self) -> dict[str, Any]:
        """What the page says of it, once it is there."""
        manifest = json.loads((self.step.path / "manifest.json").read_text(encoding="utf-8"))
        return {
            "modules": len(self.modules.modules),
            "parameters": self.modules.parameters,
            "neurons": self.modules.neurons,
            "examples": self.examples,
            "loss": manifest.get("loss", []),
            "moved": manifest.get("moved", {}).get("root_mean_square", float("nan")),
        }


def _train(study: Study, train: Train, general: Masks) -> list[FineTune]:
    """Fine-tune on the control task's questions that are not measured, twice, and measure both."""
    folder, limit = study.folder, study.settings.limit
    model = load_model(folder)
    chosen = {
        f"trained-{which}": choose(model, general, which, train.share, train.seed) for which in ("most", "fewest")
    }
    del model
    questions = read_questions(culture_folder() / "controls" / f"{train.task}.jsonl")
    data, measured = pairs(questions[limit:]), {q.id: q.prompt for q in questions[:limit]}
    if not data:
        raise InputError(
            f"limit is {limit}: all {len(questions)} items of {train.task} are measured, none is left to train on."
        )
    made = []
    for label, modules in chosen.items():
        recipe = train.recipe.model_copy(update={"only": modules.modules})
        tune = partial(_tune, folder, data, recipe, train.seed, measured)
        tuned = study.step(label, tune, needs=Needs.training(recipe))
        controls = ["trained-fewest"] if label == "trained-most" else []
        study.measure(label, partial(tuned_variant, folder), controls, [tuned])
        made.append(FineTune(tuned, modules, len(data)))
    return made


def _tune(
    folder: str, data: list[dict[str, str]], recipe: Recipe, seed: int, measured: dict[str, str], out: Path
) -> Run:
    return steps.tune_step(out, folder, data, recipe, seed, measured=measured)


def plan(settings: Settings, planner: Planner) -> list[PlannedStep]:
    """Every run folder. The data of `tasks_extra` lie on the hub, so their tokens are not known beforehand."""
    return numbered(_planned(settings, planner.with_chat(settings.chat_template)))


def _planned(s: Settings, planner: Planner) -> Iterator[PlannedStep]:
    counts, baked_bytes = planner.counts, planner.cost.weights

    def measured(label: str, name: str | None = None, caches: int | None = 0, **asked: Any) -> Iterator[PlannedStep]:
        name, wanted = name or label, Asked(**{"tasks": (CULTURE, CONTROLS, COPYING), "limit": s.limit, **asked})
        step = planner.measured(f"measure {name}", f"measure-{label}", wanted, s.engine, s.dtype)
        yield replace(step, caches=caches)
        if s.tasks_extra and not asked:
            yield PlannedStep(f"extra {name}", "extra", f"extra-{label}", s.limit * len(s.tasks_extra))

    def scaled(verb: str, name: str, **asked: Any) -> Iterator[PlannedStep]:
        yield from measured(f"{verb}-{name}", caches=baked_bytes, **asked)
        for seed in s.random_seeds:
            yield from measured(f"{verb}-{name}-random-{seed}", f"{verb}-{name}-random", baked_bytes, **asked)

    yield from measured("base")
    yield from measured("base-again", tasks=(CULTURE, CONTROLS, COPYING), order_seed=1)
    every = s.limit * len(country_names())
    yield from measured("base-noquestion", tasks=("culture_noquestion",), limit=every)
    given = material(s.limit, s.localise.items, s.localise.copying)
    asked = [q for rows in given.culture.values() for q in rows]
    scored = [*asked, *(q.without_text() for q in asked), *(q for rows in given.copying.values() for q in rows)]
    tokens = Pass(sum(counts.prompt(question.prompt) for question in scored), BACKWARD)
    yield PlannedStep("localise", "localise", "localise", len(scored), (tokens,), writes=planner.cost.neurons(1))
    yield from scaled("suppress", "general")
    if s.enhance is not None:
        yield from scaled("enhance", "general")
    for country in s.specific:
        yield from scaled("suppress", country, tasks=(CULTURE,))
    if s.train is not None:
        data = pairs(read_questions(culture_folder() / "controls" / f"{s.train.task}.jsonl")[s.limit :])
        tuned = planner.tuned("trained", "", Training(data, s.train.recipe), s.train.seed)
        spec = {"examples": len(data), "seed": s.train.seed}  # which modules are trained follows from the neurons
        for label in ("trained-most", "trained-fewest"):
            yield replace(tuned, folder=label, spec=spec)
            yield from measured(label, "trained")


ANALYSIS = Analysis(Settings, run, prepare, plan)
