"""The verbs from Python: what the commands do, with typed results and pandas frames. The commands call these functions.

Names that a command separates by commas are lists here. Every `out` is a run folder: the same call again reads what is
there, another one in the same folder is an error. `compare` and `localize` are modules of this package, hence
`compare_runs` and `localize_neurons`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.asking import asking
from harness.characters import checked_name
from harness.compare import Comparison, compare, load_runs
from harness.engines import ADAPTERS, ENGINES, Settings
from harness.engines.lease import release as release_engine
from harness.errors import InputError, choices
from harness.results import FineTune, Localized, Measurement
from harness.shapes import ROLES

if TYPE_CHECKING:
    from harness.report.sheet import Sheet

__all__ = [
    "FineTune",
    "Localized",
    "Measurement",
    "compare_runs",
    "evaluate",
    "localize_neurons",
    "release_engine",
    "run_experiment",
    "tune",
]

Place = str | Path
Switch = Literal["auto", "on", "off"]
Side = Literal["left", "right"]
SWITCHES, SIDES, DTYPES = ("auto", "on", "off"), ("left", "right"), ("auto", "bfloat16", "float32")


def evaluate(
    model: Place,
    *,
    out: Place,
    adapter: Place | None = None,
    neurons: Place | None = None,
    op: str | None = None,
    tasks: Sequence[str] | None = None,
    limit: int | Mapping[str, int] | None = None,
    engine: Literal["vllm", "torch"] = "vllm",
    dtype: Literal["auto", "bfloat16", "float32"] = "auto",
    chat_template: Switch = "auto",
    max_length: int = 1024,
    adapters: Literal["merge", "request"] = "merge",
    judge: str = "embedded",
    axes: Mapping[str, Any] | None = None,
    topics_dir: Sequence[Place] = (),
    data: Place | None = None,
    seed: int = 0,
    label: str | None = None,
    on_topic: str | None = None,
    role: str | None = None,
    temperature: float = 0.0,
    order_seed: int | None = None,
) -> Measurement:
    """Measure one model variant, as `stance eval` does.

    The engine stays for the next call; `release_engine` gives its memory back.

    Raises:
        InputError: anything wrong among the arguments, or a folder with another run.
        ProofError: the op changed nothing.
    """
    from harness.interventions import Op
    from harness.steps import measure_step
    from harness.variants import Variant

    _among(engine=(engine, ENGINES), dtype=(dtype, DTYPES), chat_template=(chat_template, SWITCHES))
    _among(adapters=(adapters, ADAPTERS), role=(role, (None, *ROLES)))
    variant = Variant(str(model), _path(adapter), _path(neurons), Op.parse(op) if op else None)
    variant.check()
    sampling = {"order_seed": order_seed, "temperature": temperature, "sampling_seed": seed}
    asked = asking(tasks, limit, judge=judge, axes=axes, topics_dir=topics_dir, data=data, **sampling)
    about = {
        "label": checked_name(label or Path(out).resolve().name, "--label (the folder's name, if not given)"),
        "role": role,
        "on_topic": on_topic,
    }
    settings = Settings(dtype, max_length, adapters=adapters, seed=seed)
    return Measurement.load(measure_step(Path(out), variant, asked, chat_template, engine, settings, about).path)


def tune(
    model: Place,
    data: Place,
    *,
    out: Place,
    topic: str | None = None,
    side: Side | None = None,
    full: bool = False,
    hold: Place | None = None,
    share: float = 1.0,
    control: int | None = None,
    anchor: Sequence[str] = (),
    anchor_weight: float = 1.0,
    mix: Sequence[str] = (),
    recipe: Place | Mapping[str, Any] | None = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    allow_measured: bool = False,
    seed: int = 0,
    processes: int = 1,
    sharded: bool = False,
) -> FineTune:
    """Fine-tune on prompt and completion pairs, with neurons held or not, as `stance tune` does.

    `recipe`: a YAML file or its keys; arguments given here win.

    Raises:
        InputError: malformed data, an unknown key, neurons of another model, measured questions among the prompts.
        ProofError: the hold or the anchor did not act, or nothing moved.
    """
    from harness.anchor import Anchored, AnchorSettings
    from harness.mitigation import Material, Training
    from harness.neurons import Neurons
    from harness.steps import tune_step
    from harness.training_data import (
        balanced_pairs,
        measured_questions,
        named_topics,
        read_training_data,
        recipe_from,
        training_questions,
    )
    from plugins import mitigation

    _among(side=(side, (None, *SIDES)))
    given = {"epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size}
    given["mode"] = "full" if full else None
    if isinstance(recipe, Mapping):
        recipe, given = None, {**recipe, **{key: value for key, value in given.items() if value is not None}}
    settings = recipe_from(_path(recipe), given)
    pairs, probes = read_training_data(Path(data), topic, side)
    held = None
    if hold is not None:
        found = Neurons.load(hold)
        options = {"share": share} if control is None else {"share": share, "seed": control}
        plugin = "inhibitft" if control is None else "random_control"
        held = mitigation(plugin, options)(Training(pairs, settings), Material(neurons=lambda _: found)).hold
    elif control is not None:
        raise InputError("--control draws random neurons to match a set: give the set with --hold.")
    if anchor_weight <= 0:
        raise InputError(f"--anchor-weight is {anchor_weight:g}; expected above 0 (without --anchor there is none).")
    if mix:
        pairs += balanced_pairs(named_topics(",".join(mix), "--mix"))
    anchored = None
    if anchor:
        prompts = training_questions(named_topics(",".join(anchor), "--anchor"))
        anchored = Anchored(prompts, AnchorSettings.model_validate({"weight": anchor_weight}))
    probed = measured_questions(probes)
    return FineTune.of(
        tune_step(
            Path(out),
            str(model),
            pairs,
            settings,
            seed,
            held,
            probed,
            allow_measured,
            anchored=anchored,
            processes=processes,
            sharded=sharded,
        )
    )


def localize_neurons(
    base: Place,
    tuned: Place,
    *,
    out: Place,
    method: str = "pnlac",
    tuned_other: Place | None = None,
    topics: Sequence[str] | None = None,
    site: str = "mlp_act",
    tokens: Literal["prompt", "completion"] = "prompt",
    side: Side = "right",
    top: float = 30.0,
    normalized: bool = False,
    prompts: int | None = None,
    chat_template: Switch = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    topics_dir: Sequence[Place] = (),
    data: Place | None = None,
    options: Mapping[str, Any] | None = None,
) -> Localized:
    """Find the neurons that carry a shift, as `stance localize METHOD` does. `topics`: names, all when left out.

    Raises:
        InputError: an unknown method, option, topic or site, or models that do not fit together.
        ProofError: the two models do not differ.
    """
    from harness.lmeval.roots import all_roots
    from harness.localize import localize_step
    from harness.sites import check_site
    from harness.sources import as_topics
    from harness.topics import find_topics
    from harness.variants import Variant, tuned_variant

    _among(tokens=(tokens, ("prompt", "completion")), side=(side, SIDES), chat_template=(chat_template, SWITCHES))
    _among(precision=(precision, DTYPES[1:]))
    where = check_site(site)
    if not 0 < top <= 100:
        raise InputError(f"--top is {top}; expected a percentage above 0 and at most 100 (the paper uses 30).")
    roots = [as_topics(Path(data))] if data is not None else [*all_roots(), *map(Path, topics_dir)]
    found = find_topics(roots)
    wanted = list(found) if topics is None else list(topics)
    if unknown := [t for t in wanted if t not in found]:
        raise InputError(f"There is no topic {choices(unknown)}; topics: {choices(found)}.")

    def served(given: Place) -> Variant:
        return tuned_variant(str(base), Path(given)) if Path(given).exists() else Variant(str(given))

    before = Variant(str(base)) if tuned_other is None else served(tuned_other)
    run = localize_step(
        Path(out), before, served(tuned), [found[t] for t in wanted], where, tokens, top, normalized, prompts, side,
        chat_template, precision, method=method, options=options,
    )  # fmt: skip
    return Localized.of(run)


def compare_runs(
    runs: Sequence[Place | Measurement],
    *,
    out: Place | None = None,
    localization: Place | Localized | None = None,
    title: str = "Before and after",
) -> Comparison:
    """Compare measurements, the base first, as `stance compare` does; with `out` the report is written there.

    Returns:
        verdict and warnings in words, and the frames stance, shifts, summary, rates and samples.

    Raises:
        InputError: fewer than two runs, a folder that is no measurement, or runs that cannot be paired.
    """
    from harness.report import write_report
    from plugins import pnlac_report

    located = None
    if localization is not None:
        folder = localization.path if isinstance(localization, Localized) else Path(localization)
        located = pnlac_report.read(folder)
    paths = [run.path if isinstance(run, Measurement) else Path(run) for run in runs]
    comparison = compare(load_runs(paths), title, located)
    if out is not None:
        write_report(comparison, Path(out))
    return comparison


def run_experiment(experiment: Place, *, out: Place | None = None) -> Comparison | Sheet:
    """Carry out an experiment file, as `stance run` does; the report is written to `out` (default: reports/NAME).

    Returns:
        a Sheet where the file names an `analysis`, else the comparison of all measurements.

    Raises:
        InputError: what is wrong with the file, naming the key.
        ProofError: an intervention did not do what it claims.
    """
    from harness.experiment_file import opened
    from harness.locks import locked
    from harness.report import write_report
    from harness.report.sheet import Sheet, write_sheet

    study = opened(Path(experiment))
    folder = study.folder(_path(out))
    with locked(folder):
        made = study.run(study.settings, folder)
        if isinstance(made, Sheet):
            write_sheet(made, folder)
        else:
            write_report(made, folder)
    return made


def _among(**given: tuple[Any, Sequence[Any]]) -> None:
    for name, (value, known) in given.items():
        if value not in known:
            raise InputError(f"{name} is {value!r}; choose from {choices(k for k in known if k is not None)}.")


def _path(given: Place | None) -> Path | None:
    return None if given is None else Path(given)
