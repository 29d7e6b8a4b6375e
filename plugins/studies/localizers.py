"""Localisers side by side on one model and its fine-tune: do they find the same neurons, and do those carry the shift?

Fine-tune (or take one), score every neuron by every localiser on the same training questions, then suppress each one's top
shares in the fine-tune and patch them into the base, always beside as many random neurons of the same layers. Scores are in
plugins/localizer_scores.py, overlaps in localizer_overlap.py, effects in dose_response.py.

    stance run experiments/localizers.yaml
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
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
from harness.interventions import ZERO
from harness.lmeval.roots import all_roots
from harness.measure import Asked, check_tasks, uses_chat
from harness.mitigation import Training
from harness.models import device, load_model, load_tokenizer, weights_hash
from harness.neurons import Neurons
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


@dataclass
class _Study(steps.Numbered):
    """One comparison being carried out in a folder."""

    settings: Settings
    out: Path
    topic: Topic
    values: dict[str, Path] = field(default_factory=dict)

    @property
    def asked(self) -> Asked:
        return self.settings.measure.asked

    @property
    def base(self) -> Variant:
        return Variant(self.settings.model)

    def measure(self, label: str, variant: Variant, asked: Asked | None = None) -> None:
        m = self.settings.measure
        work: Callable[[Path], Run] = lambda out: steps.measure_step(  # noqa: E731
            out, variant, asked or self.asked, m.chat_template, m.engine, self.settings.measure.served, {"label": label}
        )
        self.values[label] = self.step(label, work).path

    @cached_property
    def tuned(self) -> Variant:
        """The fine-tune, made or given."""
        settings = self.settings
        if settings.tuned is not None:
            return tuned_variant(settings.model, settings.tuned)
        assert settings.tune is not None
        tune, pairs = settings.tune, topic_pairs(self.topic.split("train")[: settings.tune.questions], settings.side)
        measured = measured_questions(settings.measure.topics_dir)
        about = {"on_topic": settings.topic, "side": settings.side}
        work: Callable[[Path], Run] = lambda out: steps.tune_step(  # noqa: E731
            out, settings.model, pairs, tune.recipe, tune.seed, None, measured, about=about
        )
        return tuned_variant(settings.model, self.step("tune", work).path)

    def scores(self) -> dict[str, dict[str, torch.Tensor]]:
        """`whole`, and two halves of the questions, each localiser -> scores [l, m]."""
        settings, base = self.settings, self.base.folder()
        items = self.topic.split("train")[: settings.prompts]
        tuned = self.tuned
        spec = {
            "base": self.base.spec(),
            "tuned": tuned.spec(),
            "items": digest([item.model_dump() for item in items])[:16],
            "side": settings.side,
            "chat": settings.measure.chat_template,
        }

        def work(out: Path) -> Run:
            run = open_run(out, "localizers", spec)
            if run.complete:
                return run
            make_room()
            tokenizer = load_tokenizer(base)
            chat = uses_chat(tokenizer, settings.measure.chat_template)
            before, after = (load_model(folder, torch.float32, device()) for folder in (base, tuned.folder()))
            parts = {"whole": (0, 1, 0), "first": (0, 2, 1), "second": (1, 2, 2)}
            tensors = {}
            for part, (start, step, seed) in parts.items():
                chosen = some(self.topic, start, step, settings.prompts)
                found = all_scores(before, after, tokenizer, [chosen], settings.side, chat, seed)
                tensors |= {f"{part}/{name}": scores.contiguous() for name, scores in found.items()}
            write_tensors(run.path / "scores.safetensors", tensors)
            run.finish()
            return run

        kept = load_file(self.step("scores", work).path / "scores.safetensors")
        parts = ("whole", "first", "second")
        return {part: {name: kept[f"{part}/{name}"] for name in NAMES} for part in parts}

    def doses(self, kind: Kind, shares: list[Share], seeds: list[int]) -> list[Dose]:
        return [Dose(kind, n, s, seed) for n in self.settings.localizers for s in shares for seed in (None, *seeds)]

    def suppress(self, sets: Mapping[Dose, Neurons]) -> None:
        """Zero each set in the fine-tune, through the engine's gates."""
        folder = self.out / "sets"
        folder.mkdir(parents=True, exist_ok=True)
        for dose, neurons in sets.items():
            path = folder / f"{dose.label}.safetensors"
            # Written once: a file of the same set is not the same bytes every time, and its hash is part of the run's spec.
            if not path.is_file() or not torch.equal(Neurons.load(path).mask, neurons.mask):
                neurons.save(path)
            self.measure(dose.label, replace(self.tuned, neurons=path, op=ZERO))

    def patch(self, sets: Mapping[str, Neurons]) -> dict[str, Path]:
        """The base with the fine-tune's activations at each set, on Torch."""
        m, plan, made = self.settings.measure, self.settings.patch, {}
        assert plan is not None
        asked = replace(self.asked, tasks=tuple(plan.tasks or m.tasks))
        for label, neurons in sets.items():
            work: Callable[[Path], Run] = lambda out, neurons=neurons, label=label: steps.patch_step(  # noqa: E731
                out,
                self.base,
                self.tuned,
                neurons,
                asked,
                m.chat_template,
                self.settings.measure.served,
                {"label": label},
            )
            made[label] = self.step(label, work).path
        return made


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
        study.tuned.check()
    return study


def run(settings: Settings, out: Path) -> Sheet:
    """Carry out the comparison in `out`."""
    study = prepare(settings, out)
    tuned, scores = study.tuned, study.scores()
    model = weights_hash(study.base.folder())

    def sets_of(doses: list[Dose]) -> dict[Dose, Neurons]:
        made = {}
        for dose in doses:
            own = top_set(scores["whole"][dose.localizer], dose.share, model)
            made[dose] = own if dose.seed is None else own.random_like(dose.seed, exclude=own)
        return made

    study.measure("base", study.base)
    study.measure("base-again", study.base, replace(study.asked, order_seed=NOISE_SEED))
    study.measure("tuned", tuned)
    suppressed = sets_of(study.doses("suppress", settings.shares, settings.random_seeds))
    study.suppress(suppressed)
    responses = Responses({label: read_values(path) for label, path in study.values.items()})
    floor = noise_floor(responses, "base", "base-again")
    counts = {dose: len(neurons) for dose, neurons in suppressed.items()}
    table = effects(responses, list(suppressed), "tuned", counts, floor)
    patched = None
    if settings.patch is not None:
        chosen = sets_of(study.doses("patch", settings.patch.shares, settings.patch.random_seeds))
        empty = Neurons(torch.zeros_like(next(iter(chosen.values())).mask), SITE, model)
        paths = study.patch({"patch-none": empty, **{dose.label: neurons for dose, neurons in chosen.items()}})
        own = Responses({label: read_values(path) for label, path in paths.items()})
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
    return sheet(settings.name, settings.model, found, settings.topic, share, _about(settings))


def _about(settings: Settings) -> dict[str, Any]:
    said = settings.model_dump(mode="json", exclude_defaults=True)
    return {**said, "made by": "stance run experiments/localizers.yaml"}


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
