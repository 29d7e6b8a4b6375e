"""NeuronLens as a study (arXiv 2502.06809): do ranges of a concept's dimensions carry the concept, and spare the others?

Numbered run folders: what the model answers on the texts to fit on; moments and diagnostics; one measurement per condition.
The base, the range and the full mask and their random controls are asked through the chosen engine; masks whose result
depends on the value (`damp`) or puts one there (`mean`, `rest`) through Torch, beside a base of its own.

    stance run experiments/neuronlens.yaml
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from harness import engines
from harness.analysis import Analysis
from harness.documents import read_jsonl
from harness.engines.cached import AnswerStore, CachedEngine
from harness.engines.lease import leased, make_room
from harness.engines.torch import DTYPES
from harness.errors import InputError, ProofError, choices
from harness.files import write_parquet
from harness.graph import Numbered, Step
from harness.interventions import ZERO, Effect
from harness.lmeval.roots import packaged_root
from harness.models import device, load_model, load_tokenizer, resolve, weights_hash
from harness.plan import Pass, PlannedStep
from harness.planner import Planner, numbered, small
from harness.report.sheet import Sheet
from harness.runs import Run, digest, open_run, package_versions
from plugins.neuronlens import Ranges, masking, range_op, salient
from plugins.neuronlens_concepts import ConceptTask, Prompt, prompts
from plugins.neuronlens_diagnostics import fired, last_tokens, overlaps, shape
from plugins.neuronlens_effects import Condition, ask
from plugins.neuronlens_moments import Moments, Place, load_moments, rest_of, save_moments
from plugins.neuronlens_settings import Settings, task_of
from plugins.neuronlens_sheet import Found, sheet

SERVED = ("range", "full")


@dataclass
class Study(Numbered):
    """One study being carried out."""

    settings: Settings
    out: Path
    folder: str
    task: ConceptTask
    train: list[Prompt]
    measured: list[Prompt]
    texts: dict[str, list[int]]

    def reads(self) -> tuple[str, ...]:
        """See `Declared`."""
        return (self.folder,)

    def made(self, name: str, kind: str, spec: dict[str, Any], work: Callable[[Run, str], None]) -> Step:
        """A numbered run folder; `work` is given the run and the folder of the study's model."""
        common = {"weights": weights_hash(self.folder), "dtype": self.settings.dtype, **spec}
        model = self.folder

        def make(path: Path) -> Run:
            run = open_run(path, kind, common)
            if not run.complete:
                work(run, resolve(model))
                run.finish()
            return run

        return self.step(name, make)

    def asked(self, name: str, condition: Condition, rows: list[Prompt], ranges: Ranges | None = None) -> Step:
        """The answers under one condition; `ranges` are masked, and an engine that changes nothing by it raises."""
        texts = self.texts if rows is self.measured else {}
        changed = None if ranges is None else _content(ranges, condition.mask)
        spec = {"engine": condition.engine, "prompts": _hash(rows), "neutral": digest(texts), "changed": changed}
        about = {"concept": condition.concept, "mask": condition.mask, "seed": condition.seed}
        settings = engines.Settings(dtype=self.settings.dtype, max_length=self.settings.max_length)

        def work(run: Run, folder: str) -> None:
            identity = digest([spec["engine"], vars(settings), weights_hash(folder), changed, package_versions()])
            with ExitStack() as stack:

                def serve() -> engines.Engine:
                    engine: Any = stack.enter_context(leased(condition.engine, folder, settings))
                    if ranges is not None and condition.mask in SERVED:
                        stack.callback(engine.intervene, None, ZERO)
                        run.notes["largest_change"] = engine.intervene(ranges.neurons, range_op(ranges))
                    elif ranges is not None:
                        effect = stack.enter_context(masking(engine.model, ranges, condition.mask))
                        _prove(engine, effect, rows, condition)
                        run.notes["largest_change"] = effect.largest
                    return engine

                store = stack.enter_context(closing(AnswerStore()))
                longest, tokenizer = engines.longest(folder, settings), load_tokenizer(folder)
                cached = CachedEngine(serve, store, identity, condition.engine, tokenizer, longest)
                write_parquet(run.path / "rows.parquet", ask(cached, rows, texts))

        return self.made(name, "neuronlens", {**spec, **about}, work)


def prepare(settings: Settings, out: Path) -> Study:
    """Check everything that can be known before the model is loaded.

    Raises:
        InputError: as `task_of`, an unknown model or concept, or prompts that cannot be made.
    """
    task = task_of(settings)
    if unknown := [c for c in settings.concepts if c not in task.names]:
        raise InputError(f"There is no concept {choices(unknown)} to mask; the task's concepts: {choices(task.names)}.")
    chosen = task.chosen("train", settings.fit), task.chosen("measure", settings.measure)
    folder = resolve(settings.model)
    tokenizer = load_tokenizer(folder)
    train, measured = (prompts(task, some, tokenizer, settings.answer, settings.chat) for some in chosen)
    neutral = read_jsonl(packaged_root() / "neutral" / "neutral_text.jsonl")[: settings.neutral]
    texts = {row["id"]: list(tokenizer(row["text"])["input_ids"]) for row in neutral}  # type: ignore[arg-type]
    return Study(settings, out, folder, task, train, measured, texts)


def run(settings: Settings, out: Path) -> Sheet:
    """Carry out the study in `out`.

    Raises:
        InputError: as `prepare`, or fewer than `least` texts of a concept that the model answers right.
        ProofError: a mask that changes nothing.
    """
    study = prepare(settings, out)
    answers = study.asked("answers-to-fit-on", Condition(None, "none", None, settings.engine), study.train)
    study.carry_out()
    train = _rows(answers)
    kept = _kept(study, train)
    moments, fitted = _fitted(study, kept)
    asked: dict[Condition, Step] = {}
    for condition in _conditions(settings, study.task):
        ranges = None if condition.concept is None else _ranges(settings, moments, condition)
        asked[condition] = study.asked(f"measure-{condition.label}", condition, study.measured, ranges)
    study.carry_out()
    frames = {condition: _rows(step) for condition, step in asked.items()}
    diagnostics = {name: pd.read_parquet(fitted / f"{name}.parquet") for name in ("fired", "overlap", "shape")}
    return sheet(Found(settings, study.task, train, len(kept), frames, diagnostics, _masked(settings, study.task)))


def _rows(asked: Step) -> pd.DataFrame:
    return pd.read_parquet(asked.path / "rows.parquet")


def _masked(settings: Settings, task: ConceptTask) -> tuple[str, ...]:
    return settings.concepts or tuple(task.names)


def _conditions(settings: Settings, task: ConceptTask) -> list[Condition]:
    """All that is measured. A base on the other engine shows what the engine alone changes; each is started once."""
    found = [Condition(None, "none", None, settings.engine), Condition(None, "none", None, "torch")]
    for mask in settings.masks:
        engine = settings.engine if mask in SERVED else "torch"
        found += [
            Condition(c, mask, s, engine) for c in _masked(settings, task) for s in (None, *settings.random_seeds)
        ]
    return sorted(dict.fromkeys(found), key=lambda c: c.engine != settings.engine)


def _kept(study: Study, train: pd.DataFrame) -> list[Prompt]:
    """The prompts to fit on: those that the model answers right, or all.

    Raises:
        InputError: too few that are answered right.
    """
    settings = study.settings
    if not settings.answered_right:
        return study.train
    right = set(train.loc[train["correct"] == 1, "item"])
    kept = [p for p in study.train if p.example.id in right]
    counts = {c: sum(p.example.concept == c for p in kept) for c in study.task.names}
    if few := {c: n for c, n in counts.items() if n < settings.least}:
        said = ", ".join(f"{n} of {c}" for c, n in few.items())
        raise InputError(
            f"The model answers right only {said}, of {settings.fit} texts each at most; expected {settings.least} or more "
            "of every concept (`least`), since ranges are fitted on those. Give more texts (`fit`), another model, leave "
            "the concept out, or set `answered_right: false` to fit on all of them."
        )
    return kept


def _ranges(settings: Settings, moments: dict[str, Moments], condition: Condition) -> Ranges:
    """The ranges that a condition masks; infinite for the full mask."""
    concept = str(condition.concept)
    rest = rest_of(concept, moments)
    neurons = salient(moments[concept], settings.share, rest if settings.saliency == "distance" else None)
    if condition.seed is not None:
        neurons = neurons.random_like(condition.seed, exclude=neurons)
    tau = float("inf") if condition.mask == "full" else settings.tau
    return Ranges(moments[concept], neurons, tau, rest)


def _fitted(study: Study, kept: Sequence[Prompt]) -> tuple[dict[str, Moments], Path]:
    """Moments of every concept, and the folder with them and the diagnostics."""
    settings, concepts = study.settings, list(study.task.names)
    by_concept = {c: [p.ids for p in kept if p.example.concept == c] for c in concepts}
    keys = ("site", "layer", "share", "tau", "saliency")
    measured = study.measured
    spec = {**{key: getattr(settings, key) for key in keys}, "prompts": _hash(kept), "measured": _hash(measured)}

    def work(run: Run, folder: str) -> None:
        make_room()
        model = load_model(folder, DTYPES[settings.dtype], device())
        place = Place.of(model, weights_hash(folder), settings.site, settings.layer)
        values = {c: last_tokens(model, ids, place) for c, ids in by_concept.items()}
        moments = {c: Moments.of(rows, place) for c, rows in values.items()}
        ranges = {c: _ranges(settings, moments, Condition(c, "range", None, "torch")) for c in concepts}
        shapes = []
        for concept, one in ranges.items():
            found = shape(moments[concept], values[concept])
            table = {"dimension": range(place.width), "salient": one.members.numpy()}
            table |= {name: getattr(found, name).numpy() for name in ("skew", "kurtosis", "normal")}
            shapes.append(pd.DataFrame({"concept": concept, **table}))
        write_parquet(run.path / "shape.parquet", pd.concat(shapes))
        pairs = [(a, b, int(o.shared.sum()), o.mean) for (a, b), o in overlaps(ranges).items()]
        overlap = pd.DataFrame(pairs, columns=["concept", "other", "shared", "overlap"])
        write_parquet(run.path / "overlap.parquet", overlap)
        counted = fired(model, ranges, [p.ids for p in measured])
        items = {"item": [p.example.id for p in measured], "text_of": [p.example.concept for p in measured]}
        rates = [
            pd.DataFrame({"ranges_of": c, **items, "last": last.numpy(), "all": every.numpy()})
            for c, (last, every) in counted.items()
        ]
        write_parquet(run.path / "fired.parquet", pd.concat(rates))
        save_moments(moments, run.path / "moments.safetensors")
        run.notes["place"] = vars(place)

    fit = study.made("fit", "neuronlens-fit", spec, work)
    study.carry_out()
    manifest = json.loads((fit.path / "manifest.json").read_text(encoding="utf-8"))
    return load_moments(fit.path / "moments.safetensors", Place(**manifest["place"]), concepts), fit.path


def _prove(engine: engines.Engine, effect: Effect, rows: Sequence[Prompt], condition: Condition) -> None:
    """Before any answer is kept, as engines do for the ops they serve.

    Raises:
        ProofError: the mask changes nothing on a prompt of the concept's own.
    """
    probe = next(p for p in rows if p.example.concept == condition.concept)
    engine.score_choices([(probe.ids, probe.options)])
    if not effect.largest:
        raise ProofError(
            f"Mask {condition.label} changed none of {effect.values} activations on a prompt of its concept."
        )


def _content(ranges: Ranges, mask: str) -> str:
    """What identifies a mask: dimensions, bounds, and what replaces a value inside."""
    constant = None if mask in (*SERVED, "damp") else ranges.constant(mask)
    dimensions = ranges.members.nonzero().flatten().tolist()
    return digest([mask, dimensions, range_op(ranges).digest, None if constant is None else constant.tolist()])


def _hash(rows: Sequence[Prompt]) -> str:
    return digest([(p.example.id, p.ids, p.options, p.right) for p in rows])


def plan(settings: Settings, planner: Planner) -> list[PlannedStep]:
    """Every run folder; a text counts without the words that ask for its label."""
    task, count, dtype = task_of(settings), planner.counts.text, planner.dtype(settings.dtype)
    chosen = task.chosen("train", settings.fit), task.chosen("measure", settings.measure)
    train, asked = ([count(example.text) for example in some] for some in chosen)
    neutral = read_jsonl(packaged_root() / "neutral" / "neutral_text.jsonl")[: settings.neutral]
    both = Pass(sum(asked) + sum(count(row["text"]) for row in neutral))
    first = small("answers to fit on", "neuronlens", "answers-to-fit-on", [Pass(sum(train))], len(train), dtype)
    fit = small("fit", "neuronlens-fit", "fit", [Pass(sum(train) + sum(asked))], len(train) + len(asked), dtype)
    steps = [replace(first, spec={"engine": settings.engine}), fit]
    for condition in _conditions(settings, task):
        kind = condition.mask if condition.concept else "base"
        name = f"measure {kind}" + (" of random dimensions" if condition.seed is not None else "")
        documents = len(asked) + len(neutral)
        step = small(name, "neuronlens", f"measure-{condition.label}", [both], documents, dtype)
        steps.append(replace(step, spec={"engine": condition.engine, "dtype": settings.dtype}))
    return numbered(steps)


ANALYSIS = Analysis(Settings, run, prepare, plan)
