"""Localisers side by side on one model and its fine-tune: do they find the same neurons, and do those carry the shift?

Fine-tune (or take one), score every neuron by every localiser on the same training questions, then suppress each one's top
shares in the fine-tune and patch them into the base, always beside as many random neurons of the same layers. Scores are in
plugins/localizer_scores.py, overlaps in localizer_overlap.py, effects in dose_response.py.

    stance run experiments/localizers.yaml
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from harness import steps
from harness.analysis import Analysis
from harness.engines.lease import make_room
from harness.errors import InputError, choices
from harness.experiment import NOISE_SEED
from harness.files import write_tensors
from harness.finetune import topic_pairs
from harness.graph import TWO, Needs, Numbered, Step
from harness.interventions import ZERO
from harness.lmeval.roots import all_roots
from harness.measure import Asked, check_tasks, uses_chat
from harness.mitigation import Training
from harness.models import device, load_model, load_tokenizer, weights_hash
from harness.neurons import Neurons
from harness.placed import here
from harness.plan import BACKWARD, Pass, PlannedStep
from harness.planner import Planner, numbered
from harness.report.sheet import Sheet
from harness.runs import Run, digest, open_run
from harness.topics import Topic, all_topics
from harness.training_data import measured_questions
from harness.variants import Variant, tuned_variant
from plugins.dose_response import Dose, Kind, Responses, effects, noise_floor, read_values
from plugins.localizer_overlap import agreement, layers, stability, top_set
from plugins.localizer_scores import NAMES, SITE, all_scores, some
from plugins.localizer_settings import Settings, Share
from plugins.localizer_sheet import Found, sheet


@dataclass(frozen=True)
class Tuned:
    """The fine-tune: given, or made by the step of `after`."""

    model: str
    given: Path | None
    after: tuple[Step, ...] = ()

    def variant(self, *made: Path) -> Variant:
        """As something to serve, on the machine that does."""
        return tuned_variant(self.model, made[0] if self.given is None else Path(here(self.given)))


@dataclass
class _Study(Numbered):
    """One comparison being carried out in a folder."""

    settings: Settings
    out: Path
    topic: Topic
    values: dict[str, Step] = field(default_factory=dict)

    @property
    def asked(self) -> Asked:
        return self.settings.measure.asked

    @property
    def base(self) -> Variant:
        return Variant(self.settings.model)

    def reads(self) -> tuple[str, ...]:
        """See `Declared`."""
        s = self.settings
        given = [s.tuned, *s.measure.topics_dir, self.sets if self.sets.is_dir() else None]
        return (s.model, *(str(path) for path in given if path is not None))

    @property
    def sets(self) -> Path:
        """Where neuron sets are written, which measurements read."""
        return self.out / "sets"

    def measure(
        self, label: str, tuned: Tuned | None = None, neurons: Path | None = None, asked: Asked | None = None
    ) -> None:
        """One measurement: of the base, of the fine-tune, or of the fine-tune with a set zeroed."""
        m, model, wanted = self.settings.measure, self.settings.model, asked or self.asked

        def work(out: Path, *made: Path) -> Run:
            variant = Variant(model) if tuned is None else tuned.variant(*made)
            if neurons is not None:
                variant = replace(variant, neurons=Path(here(neurons)), op=ZERO)
            return steps.measure_step(out, variant, wanted, m.chat_template, m.engine, m.served, {"label": label})

        after = () if tuned is None else tuned.after
        self.values[label] = self.step(label, work, *after, needs=Needs(m.tensor_parallel))

    def tuned(self) -> Tuned:
        """The fine-tune, made or given."""
        settings = self.settings
        if settings.tuned is not None:
            return Tuned(settings.model, settings.tuned)
        assert settings.tune is not None
        tune, model, folders = settings.tune, settings.model, settings.measure.topics_dir
        pairs = topic_pairs(self.topic.split("train")[: tune.questions], settings.side)
        about = {"on_topic": settings.topic, "side": settings.side}

        def work(out: Path) -> Run:
            measured = measured_questions(folders)
            return steps.tune_step(out, model, pairs, tune.recipe, tune.seed, None, measured, about=about)

        return Tuned(model, None, (self.step("tune", work, needs=Needs.training(tune.recipe)),))

    def score(self, tuned: Tuned) -> Step:
        """Every localiser's scores [l, m] on all questions (`whole`) and on two halves of them."""
        settings, topic, base = self.settings, self.topic, self.base
        items = topic.split("train")[: settings.prompts]

        def work(out: Path, *made: Path) -> Run:
            variant = tuned.variant(*made)
            spec = {
                "base": base.spec(),
                "tuned": variant.spec(),
                "items": digest([item.model_dump() for item in items])[:16],
                "side": settings.side,
                "chat": settings.measure.chat_template,
            }
            run = open_run(out, "localizers", spec)
            if run.complete:
                return run
            make_room()
            folder = base.folder()
            tokenizer = load_tokenizer(folder)
            chat = uses_chat(tokenizer, settings.measure.chat_template)
            before, after = (load_model(path, torch.float32, device()) for path in (folder, variant.folder()))
            parts = {"whole": (0, 1, 0), "first": (0, 2, 1), "second": (1, 2, 2)}
            tensors = {}
            for part, (start, step, seed) in parts.items():
                chosen = some(topic, start, step, settings.prompts)
                found = all_scores(before, after, tokenizer, [chosen], settings.side, chat, seed)
                tensors |= {f"{part}/{name}": scores.contiguous() for name, scores in found.items()}
            write_tensors(run.path / "scores.safetensors", tensors)
            run.finish()
            return run

        return self.step("scores", work, *tuned.after, needs=TWO)

    def doses(self, kind: Kind, shares: list[Share], seeds: list[int]) -> list[Dose]:
        return [Dose(kind, n, s, seed) for n in self.settings.localizers for s in shares for seed in (None, *seeds)]

    def suppress(self, tuned: Tuned, sets: Mapping[Dose, Neurons]) -> None:
        """Zero each set in the fine-tune, through the engine's gates."""
        self.sets.mkdir(parents=True, exist_ok=True)
        for dose, neurons in sets.items():
            path = self.sets / f"{dose.label}.safetensors"
            # Written once: a file of the same set is not the same bytes every time, and its hash is part of the run's spec.
            if not path.is_file() or not torch.equal(Neurons.load(path).mask, neurons.mask):
                neurons.save(path)
            self.measure(dose.label, tuned, path)

    def patch(self, tuned: Tuned, sets: Mapping[str, Neurons]) -> dict[str, Step]:
        """The base with the fine-tune's activations at each set, on Torch."""
        m, plan, base = self.settings.measure, self.settings.patch, self.base
        assert plan is not None
        asked = replace(self.asked, tasks=tuple(plan.tasks or m.tasks))

        def patched(label: str, neurons: Neurons) -> Callable[..., Run]:
            def work(out: Path, *made: Path) -> Run:
                donor = tuned.variant(*made)
                return steps.patch_step(out, base, donor, neurons, asked, m.chat_template, m.served, {"label": label})

            return work

        return {label: self.step(label, patched(label, n), *tuned.after, needs=TWO) for label, n in sets.items()}


def prepare(settings: Settings, out: Path) -> _Study:
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
    study = _Study(settings, out, topic)
    check_tasks(study.asked)
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
    return numbered(_planned(_Study(settings, Path(), topic), planner))


def _planned(study: _Study, planner: Planner) -> Iterator[PlannedStep]:
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
