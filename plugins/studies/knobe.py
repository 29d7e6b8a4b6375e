"""The Knobe effect in a base model and its fine-tune, and the blocks that carry the difference (arXiv 2510.12229).

Numbered steps, each a run folder: tune (where the experiment tunes a model of its own), rate the base, rate it again with
other draws (the noise floor), rate the tuned model, sweep the patches, and rate stitched models at chosen blocks. The page
has the effects by both scorers, the analyses of variance by item and by trial, parse rates and the sweep.

    stance run experiments/knobe.yaml
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pandas as pd

from harness import engines
from harness.analysis import Analysis
from harness.engines.cached import AnswerStore, CachedEngine
from harness.engines.lease import leased, make_room
from harness.errors import InputError, choices
from harness.files import write_parquet
from harness.finetune import topic_pairs
from harness.graph import TWO, Needs, Numbered, Step
from harness.lmeval.roots import all_roots
from harness.mitigation import Training
from harness.models import load_tokenizer, resolve, weights_hash
from harness.plan import Pass, PlannedStep
from harness.planner import Planner, numbered, small
from harness.report.sheet import Sheet
from harness.runs import Run, digest, open_run, package_versions
from harness.sites import decoder_layers
from harness.topics import find_topics
from harness.variants import Variant, tuned_variant
from harness.work import tuning
from plugins.knobe import CONDITIONS
from plugins.knobe_originals import load_originals
from plugins.knobe_ratings import NEW_TOKENS, Asked, cells_of, expected, prompts_of, rate
from plugins.knobe_report import Findings, sheet
from plugins.knobe_settings import KnobeSettings, TuneSettings
from plugins.knobe_vignettes import load_vignettes
from plugins.layer_patching import LEAST
from plugins.layer_patching_stitch import stitched
from plugins.layer_patching_sweep import sweep_ratings

BASE, AGAIN, TUNED = "base", "base again", "tuned"


@dataclass
class _Study(Numbered):
    settings: KnobeSettings
    out: Path
    asked: Sequence[Asked]

    def reads(self) -> tuple[str, ...]:
        """See `Declared`."""
        return (self.settings.model, *([] if self.settings.tuned is None else [self.settings.tuned]))

    @property
    def texts(self) -> str:
        """Hash of all prompts."""
        by_cell = {v.id: v for v in self.asked}
        return digest([by_cell[item].prompt(condition) for item, condition in cells_of(self.asked)])[:16]


def prepare(settings: KnobeSettings, out: Path) -> _Study:
    """Check everything that can be known before a model is loaded.

    Raises:
        InputError: unknown model, topic or file, or too few vignettes.
    """
    study = _Study(settings, out, _vignettes(settings))
    if settings.tune is not None:
        _pairs(settings.tune)
    Variant(settings.model).check()
    if settings.tuned is not None:
        Variant(settings.tuned).check()
    return study


def run(settings: KnobeSettings, out: Path) -> Sheet:
    """Carry out the study in `out`.

    Raises:
        InputError: unknown model, topic or file, blocks that do not exist, or models that read a prompt differently.
        ProofError: a fine-tune or a patch that changed nothing.
    """
    study = prepare(settings, out)
    if settings.tuned is not None:  # a fine-tune of this study's own has its base's tokenizer
        _same_prompts(study.asked, *(Variant(name).folder() for name in (settings.model, settings.tuned)))
    tuned, base = _tuned(study), Base(settings.model)
    ratings = {
        BASE: _rate(study, BASE, base, settings.seed),
        AGAIN: _rate(study, AGAIN, base, settings.seed + 1),
        TUNED: _rate(study, TUNED, tuned, settings.seed),
    }
    sweep = _sweep(study, tuned) if settings.sweep else None
    for layer in settings.stitched:
        name = f"stitched after {layer}"
        ratings[name] = _rate(study, name, replace(tuned, stitched=layer), settings.seed)
    study.carry_out()
    swept = None if sweep is None else pd.read_parquet(sweep.path / "sweep.parquet")
    read = [_ratings(label, step) for label, step in ratings.items()]
    trials, scores = (pd.concat(tables, ignore_index=True) for tables in zip(*read, strict=True))
    about = json.loads(settings.model_dump_json()) | {"prompts": study.texts, "pairs asked": len(study.asked)}
    least = settings.sweep.least if settings.sweep else LEAST
    return sheet(Findings(settings.name, BASE, AGAIN, TUNED, trials, scores, swept, least, about))


def _vignettes(settings: KnobeSettings) -> Sequence[Asked]:
    own = settings.originals
    found: Sequence[Asked] = load_originals(own) if own else load_vignettes(settings.vignettes)
    if settings.pairs and settings.pairs > len(found):
        raise InputError(f"`pairs` is {settings.pairs}; there are {len(found)} pairs of vignettes.")
    if len(found) < 2:
        raise InputError(f"{len(found)} pairs of vignettes came; at least 2 are needed to tell an effect from chance.")
    return found[: settings.pairs]


@dataclass(frozen=True)
class Base:
    """The base, as a model that is rated; `after`: the step that makes one."""

    model: str
    after: tuple[Step, ...] = ()

    def folder(self, *made: Path) -> str:
        """Its weights, on the machine that reads them."""
        return Variant(self.model).folder()


@dataclass(frozen=True)
class Tuned(Base):
    """The tuned model: named, or made by the step of `after`; `stitched`: from this block on it is the base again."""

    named: str | None = None
    stitched: int | None = None

    def folder(self, *made: Path) -> str:
        """See `Base`."""
        tuned = tuned_variant(self.model, *made) if made else Variant(str(self.named))
        folders = Variant(self.model).folder(), tuned.folder()
        return folders[1] if self.stitched is None else stitched(*folders, self.stitched)


def _tuned(study: _Study) -> Tuned:
    settings, wanted = study.settings, study.settings.tune
    if wanted is None:
        return Tuned(settings.model, named=settings.tuned)
    model, plain = settings.model, Training(_pairs(wanted), wanted.recipe)
    said = {"on_topic": wanted.topic, "side": wanted.side}
    work = tuning(model, lambda: plain, wanted.seed, [], said)
    return Tuned(model, (study.step("tune", work, needs=Needs.training(wanted.recipe)),))


def _pairs(wanted: TuneSettings) -> list[dict[str, str]]:
    topics = find_topics(all_roots())
    if wanted.topic not in topics or not topics[wanted.topic].split("train"):
        raise InputError(f"There is no topic {wanted.topic!r} with items to tune on; topics: {choices(topics)}.")
    return topic_pairs(topics[wanted.topic].split("train"), wanted.side)


def _same_prompts(asked: Sequence[Asked], base: str, tuned: str) -> None:
    read = [prompts_of(load_tokenizer(folder), asked) for folder in (base, tuned)]
    if read[0] != read[1]:
        raise InputError(
            "The two models' tokenizers read the prompts differently, so their activations do not belong to the same tokens. "
            "Give a model and its fine-tune, with one tokenizer."
        )


def _rate(study: _Study, label: str, rated: Base, seed: int) -> Step:
    """One model's trials and expected ratings."""
    config, asked = study.settings, study.asked
    settings = engines.Settings(dtype=config.dtype, max_length=config.max_length)
    spec = {"label": label, "prompts": study.texts, "trials": config.trials, "seed": seed}
    spec |= {"engine": config.engine, "dtype": config.dtype}

    def work(out: Path, *made: Path) -> Run:
        folder = rated.folder(*made)
        run = open_run(out, "knobe-ratings", {**spec, "weights": weights_hash(folder)})
        if run.complete:
            return run
        identity = digest([weights_hash(folder), config.engine, vars(settings), package_versions()])
        with ExitStack() as stack:
            store = stack.enter_context(closing(AnswerStore()))
            longest = engines.longest(folder, settings)
            cached = CachedEngine(
                lambda: stack.enter_context(leased(config.engine, folder, settings)),
                store, identity, config.engine, load_tokenizer(folder), longest,
            )  # fmt: skip
            write_parquet(run.path / "trials.parquet", rate(cached, asked, config.trials, seed))
            write_parquet(run.path / "expected.parquet", expected(cached, asked))
            run.notes["requests"] = {"asked": cached.asked, "from_cache": cached.hits}
        run.finish()
        return run

    return study.step(f"rate-{label.replace(' ', '-')}", work, *rated.after)


def _ratings(label: str, rated: Step) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A model's trials and expected ratings, from its run folder."""
    trials, scores = (pd.read_parquet(rated.path / f"{name}.parquet") for name in ("trials", "expected"))
    return trials.assign(model=label), scores.assign(model=label)


def _sweep(study: _Study, rated: Tuned) -> Step:
    wanted, config, asked, texts = study.settings.sweep, study.settings, study.asked, study.texts
    assert wanted is not None

    def work(out: Path, *made: Path) -> Run:
        base, tuned = resolve(config.model), rated.folder(*made)
        spec = {"base": weights_hash(base), "tuned": weights_hash(tuned), "dtype": config.dtype, "prompts": texts}
        spec |= wanted.model_dump(exclude={"least", "batch_tokens"})
        run = open_run(out, "knobe-sweep", spec)
        if run.complete:
            return run
        from harness.engines.torch import DTYPES
        from harness.models import device, load_model

        make_room()
        first, second = (load_model(folder, DTYPES[config.dtype], device()) for folder in (base, tuned))
        table = sweep_ratings(
            first, second, load_tokenizer(base), asked[: wanted.pairs], wanted.sites,
            wanted.blocks(len(decoder_layers(first))), wanted.controls, wanted.seeds, wanted.batch_tokens,
        )  # fmt: skip
        write_parquet(run.path / "sweep.parquet", table)
        run.finish()
        return run

    return study.step("sweep", work, *rated.after, needs=TWO)


def plan(settings: KnobeSettings, planner: Planner) -> list[PlannedStep]:
    """Every run folder. On vLLM a prompt counts once for all of its trials; the sweep resumes at the patched block."""
    return numbered(_planned(settings, planner.with_chat("off")))


def _planned(s: KnobeSettings, planner: Planner) -> Iterator[PlannedStep]:
    asked, dtype = _vignettes(s), planner.dtype(s.dtype)
    if s.tune is not None:
        train = Training(_pairs(s.tune), s.tune.recipe)
        yield planner.with_chat("auto").tuned("tune", "tune", train, s.tune.seed)
    prompts = [planner.counts.text(v.prompt(condition)) for v, condition in product(asked, CONDITIONS)]
    read = 2 if s.engine == "vllm" else 1 + s.trials  # the trials, and the expected value
    tokens = Pass(read * sum(prompts) + len(prompts) * s.trials * NEW_TOKENS)
    merged = s.tune is not None and s.tune.recipe.mode == "lora"

    def rated(label: str, caches: int | None = 0) -> PlannedStep:
        spec = {"label": label, "trials": s.trials, "engine": s.engine, "dtype": s.dtype}
        step = small("rate", "knobe-ratings", f"rate-{label.replace(' ', '-')}", [tokens], len(prompts), dtype)
        return replace(step, documents=len(prompts) * s.trials, caches=caches, spec=spec)

    yield rated(BASE)
    yield rated(AGAIN)
    yield rated(TUNED, planner.cost.weights if merged else 0)
    if s.sweep is not None:
        count = planner.cost.layers or 32
        kinds = 1 + len(s.sweep.controls) * len(s.sweep.seeds)
        after = sum(1 - block / count for block in s.sweep.blocks(count))  # blocks that run again under a patch
        passes = 2 * (1 + len(s.sweep.sites) * kinds * after)
        some = prompts[: None if s.sweep.pairs is None else len(CONDITIONS) * s.sweep.pairs]
        yield small("sweep", "knobe-sweep", "sweep", [Pass(sum(some) * passes)], len(some), dtype)
    for layer in s.stitched:
        yield rated(f"stitched after {layer}", planner.cost.weights)


ANALYSIS = Analysis(KnobeSettings, run, prepare, plan)
