"""`stance`: one command per verb. Options are parsed here; the work is in steps.py, experiment.py and compare.py.

Exit codes: 0 done, 2 the input is wrong, 3 an intervention did not do what it claims, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from harness import __version__
from harness.errors import InputError, ProofError, choices

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path)


class _Commands(click.Group):
    """Turns the two expected failures and Ctrl-C into one paragraph and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.secho(f"Error: {error}", err=True, fg="red")
            raise SystemExit(2) from None
        except ProofError as error:
            click.secho(f"Refused: {error}", err=True, fg="red")
            raise SystemExit(3) from None
        except KeyboardInterrupt:
            click.echo("\nInterrupted. Finished runs are kept; give the same command again to go on.", err=True)
            raise SystemExit(130) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="stance-harness")
def main() -> None:
    """Where a language model stands, what a fine-tune moved, which neurons carried it, and how to train without it.

    \b
    Start here:  stance run experiments/demo.yaml
    """
    from harness.process import settle

    settle()


def _measuring(command: Any) -> Any:
    """Options of every command that asks a model."""
    options = [
        click.option("--tasks", default=None, help="lm-eval task names, comma-separated. Default: political_stance."),
        click.option("--limit", type=int, help="At most so many documents per task (the run is marked partial)."),
        click.option("--engine", type=click.Choice(["vllm", "torch"]), default="vllm", show_default=True),
        click.option("--dtype", type=click.Choice(["auto", "bfloat16", "float32"]), default="auto", show_default=True),
        click.option("--chat-template", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True),
        click.option(
            "--max-length", type=click.IntRange(32), default=1024, show_default=True, help="Tokens per request."
        ),
        click.option("--judge", default="embedded", show_default=True, help="Who labels open answers."),
        click.option("--topics-dir", type=FOLDER, multiple=True, help="Folder with topic files of your own."),
        click.option("--data", type=FOLDER, help="IDEOINST-like folder to ask instead of the packaged topics."),
        click.option("--seed", type=int, default=0, show_default=True),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _asked(tasks: str | None, limit: int | None, judge: str, topics_dir: tuple[Path, ...], data: Path | None) -> Any:
    from harness.ideoinst import as_topics
    from harness.measure import Asked, check_tasks
    from harness.topics import GROUP, find_topics

    folders = list(topics_dir)
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--topics-dir {folder} is no folder; give a folder with topic files.")
    names = (GROUP,)
    if data is not None:
        made = as_topics(data)
        folders.append(made)
        names = tuple(topic.task for topic in find_topics([made]).values())
    if tasks is not None:
        names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    asked = Asked(names, limit, judge=judge, folders=tuple(folders))
    check_tasks(asked)
    return asked


@main.command("eval")
@click.option("--model", required=True, help="Local folder, hub name, or embedded model.")
@click.option("--adapter", type=FOLDER, help="LoRA adapter trained on that model.")
@click.option("--neurons", type=FILE, help="Neuron set to intervene on; needs --op.")
@click.option("--op", "op_text", help="zero, or scale=X.")
@_measuring
@click.option("--label", help="Name of the run in a comparison. Default: the folder's name.")
@click.option("--on-topic", help="Topic the model was tuned on, for a comparison.")
@click.option(
    "--role", type=click.Choice(["base", "noise", "tuned", "inhibited", "control", "other"]), help="In a comparison."
)
@click.option("--order-seed", type=int, help="Ask in a shuffled order (a second run of the base: the noise floor).")
@click.option("--out", type=FOLDER, required=True, help="Run folder to write.")
def eval_command(
    model: str,
    adapter: Path | None,
    neurons: Path | None,
    op_text: str | None,
    tasks: str | None,
    limit: int | None,
    engine: str,
    dtype: str,
    chat_template: str,
    max_length: int,
    judge: str,
    topics_dir: tuple[Path, ...],
    data: Path | None,
    seed: int,
    label: str | None,
    on_topic: str | None,
    role: str | None,
    order_seed: int | None,
    out: Path,
) -> None:
    """Measure one model variant: manifest.json, results.json and samples.parquet in --out.

    \b
    Example:  stance eval --model smollm2-135m-instruct --tasks political_stance_race --limit 4 --out runs/base
    """
    from dataclasses import replace

    from harness.engines import Settings
    from harness.interventions import Op
    from harness.steps import measure_step
    from harness.variants import Variant

    variant = Variant(model, adapter, neurons, Op.parse(op_text) if op_text else None)
    variant.check()
    asked = replace(_asked(tasks, limit, judge, topics_dir, data), order_seed=order_seed)
    about = {"label": label or out.name, "role": role, "on_topic": on_topic}
    run = measure_step(out, variant, asked, chat_template, engine, Settings(dtype, max_length, seed=seed), about)
    from harness.terminal import print_measurement

    print_measurement(run)


@main.command("tune")
@click.option("--model", required=True, help="Base to train from.")
@click.option("--data", type=FILE, required=True, help="JSONL with prompt and completion, or an IDEOINST-like folder.")
@click.option("--topic", help="With a folder: which topic of it.")
@click.option("--side", type=click.Choice(["left", "right"]), help="With a folder: which side's answers.")
@click.option("--full", is_flag=True, help="Train all weights instead of LoRA.")
@click.option("--hold", type=FILE, help="Neurons whose weights must not change.")
@click.option("--share", type=float, default=1.0, show_default=True, help="Hold the best-scored share of them.")
@click.option("--control", type=int, help="Hold as many random neurons per layer instead, with this seed.")
@click.option("--epochs", type=float, default=None, help="Default 6.")
@click.option("--learning-rate", type=float, default=None, help="Default 2e-5.")
@click.option("--batch-size", type=int, default=None, help="Default 8.")
@click.option("--recipe", type=FILE, help="YAML with any recipe key; options given here win.")
@click.option("--allow-measured", is_flag=True, help="Train although probe questions stand in the data.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=FOLDER, required=True)
def tune_command(
    model: str,
    data: Path,
    topic: str | None,
    side: str | None,
    full: bool,
    hold: Path | None,
    share: float,
    control: int | None,
    epochs: float | None,
    learning_rate: float | None,
    batch_size: int | None,
    recipe: Path | None,
    allow_measured: bool,
    seed: int,
    out: Path,
) -> None:
    """Fine-tune on prompt and completion pairs, with neurons held or not; proves the hold afterwards.

    \b
    Example:  stance tune --model smollm2-135m-instruct --data answers.jsonl --full --learning-rate 1e-4 --out runs/tuned
    """
    from harness.neurons import Neurons
    from harness.steps import tune_step
    from harness.training_data import measured_questions, read_training_data, recipe_from
    from plugins import mitigation

    given = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "mode": "full" if full else None,
    }
    settings = recipe_from(recipe, given)
    pairs, probes = read_training_data(data, topic, side)
    held = None
    if hold is not None:
        plugin = "inhibitft" if control is None else "random_control"
        held = mitigation(plugin)(Neurons.load(hold), share, control or 0)
    elif control is not None:
        raise InputError("--control draws random neurons to match a set: give the set with --hold.")
    run = tune_step(out, model, pairs, settings, seed, held, measured_questions(probes), allow_measured)
    from harness.terminal import print_tune

    print_tune(run)


@main.group()
def localize() -> None:
    """Find the neurons that carry a shift; one sub-command per method."""


@localize.command()
@click.option("--base", required=True, help="Model before.")
@click.option("--tuned", required=True, help="Model or adapter after.")
@click.option("--tuned-other", help="A model tuned to the other side: contrast the two tuned models.")
@click.option("--topics", default="all", show_default=True, help="Topic names, comma-separated, or all.")
@click.option("--site", default="mlp_act", show_default=True, help="mlp_act or mlp_out.")
@click.option("--tokens", type=click.Choice(["prompt", "completion"]), default="prompt", show_default=True)
@click.option(
    "--side", type=click.Choice(["left", "right"]), default="right", help="Whose completions, with --tokens completion."
)
@click.option("--top", type=float, default=30.0, show_default=True, help="Percent of all neurons selected per topic.")
@click.option("--normalized", is_flag=True, help="Score in units of each neuron's standard deviation.")
@click.option("--prompts", type=click.IntRange(1), help="Training questions per topic. Default: all.")
@click.option("--chat-template", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True)
@click.option("--topics-dir", type=FOLDER, multiple=True)
@click.option("--data", type=FOLDER, help="IDEOINST-like folder to take the prompts from.")
@click.option("--out", type=FOLDER, required=True)
def pnlac(
    base: str,
    tuned: str,
    tuned_other: str | None,
    topics: str,
    site: str,
    tokens: str,
    side: str,
    top: float,
    normalized: bool,
    prompts: int | None,
    chat_template: str,
    topics_dir: tuple[Path, ...],
    data: Path | None,
    out: Path,
) -> None:
    """Activation contrasting between a model and its fine-tune (arXiv 2508.02360).

    \b
    Example:  stance localize pnlac --base smollm2-135m-instruct --tuned runs/tuned --out runs/neurons
    """
    from harness.ideoinst import as_topics
    from harness.lmeval.roots import all_roots
    from harness.localize import localize_step
    from harness.sites import check_site
    from harness.terminal import print_localization
    from harness.topics import find_topics
    from harness.variants import Variant, tuned_variant

    where = check_site(site)
    if not 0 < top <= 100:
        raise InputError(f"--top is {top}; expected a percentage above 0 and at most 100 (the paper uses 30).")
    roots = [as_topics(data)] if data is not None else [*all_roots(), *topics_dir]
    found = find_topics(roots)
    wanted = list(found) if topics == "all" else [t.strip() for t in topics.split(",")]
    if unknown := [t for t in wanted if t not in found]:
        raise InputError(f"There is no topic {choices(unknown)}; topics: {choices(found)}.")
    before = Variant(base)
    after = tuned_variant(base, Path(tuned)) if Path(tuned).exists() else Variant(tuned)
    if tuned_other is not None:
        before = tuned_variant(base, Path(tuned_other)) if Path(tuned_other).exists() else Variant(tuned_other)
    run = localize_step(
        out, before, after, [found[t] for t in wanted], where, tokens, top, normalized, prompts, side, chat_template
    )
    print_localization(run)


@main.command("compare")
@click.argument("runs", nargs=-1, type=FOLDER)
@click.option("--localization", type=FOLDER, help="Folder of `stance localize`, for the neurons' section.")
@click.option("--title", default="Before and after", show_default=True)
@click.option("--out", type=FOLDER, required=True)
def compare_command(runs: tuple[Path, ...], localization: Path | None, title: str, out: Path) -> None:
    """Compare measurements: the base first, then the others. Writes index.html, report.md, CSV and JSON.

    \b
    Example:  stance compare runs/base runs/tuned --out reports/mine
    """
    import json

    from harness.compare import compare, load_runs
    from harness.terminal import print_comparison

    located = None
    if localization is not None:
        file = localization / "localization.json"
        if not file.is_file():
            raise InputError(f"{localization} holds no localization.json; expected a folder `stance localize` wrote.")
        located = json.loads(file.read_text(encoding="utf-8"))
    print_comparison(compare(load_runs(list(runs)), title, located), out)


@main.command("run")
@click.argument("experiment", type=FILE)
@click.option("--out", type=FOLDER, help="Default: reports/NAME.")
def run_command(experiment: Path, out: Path | None) -> None:
    """Carry out an experiment file; finished steps are kept, so the same command goes on where it stopped.

    \b
    Example:  stance run experiments/demo.yaml
    """
    from harness.config import load_experiment
    from harness.experiment import run
    from harness.terminal import print_comparison

    config = load_experiment(experiment)
    folder = out or Path("reports") / config.name
    print_comparison(run(config, folder), folder)


@main.group()
def models() -> None:
    """Embedded models."""


@models.command("get")
@click.argument("name")
def models_get(name: str) -> None:
    """Make an embedded model's folder (once) and print it.

    \b
    Example:  stance models get smollm2-135m-instruct
    """
    from harness.models import get

    click.echo(str(get(name)))


@models.command("ls")
def models_ls() -> None:
    """List embedded models and where they are."""
    from harness.models import EMBEDDED, cache_folder

    for name in EMBEDDED:
        folder = cache_folder() / "models" / name
        state = str(folder) if (folder / "config.json").is_file() else "not made yet: stance models get " + name
        click.echo(f"{name}  {state}")


@main.group()
def topics() -> None:
    """Topic files: list, start a new one, check one."""


@topics.command("ls")
@click.option("--topics-dir", type=FOLDER, multiple=True)
def topics_ls(topics_dir: tuple[Path, ...]) -> None:
    """List every topic with its items and where it stands."""
    from harness.terminal import print_topics

    print_topics(list(topics_dir))


@topics.command("new")
@click.argument("name")
@click.option("--dir", "folder", type=FOLDER, default=Path(), help="Where to write it. Default: here.")
def topics_new(name: str, folder: Path) -> None:
    """Write a commented topic file NAME.yaml to fill in.

    \b
    Example:  stance topics new climate --dir my_topics
    """
    from harness.topics_cli import new_topic

    click.echo(f"Wrote {new_topic(name, folder)}. Fill it in, then: stance topics check {folder / name}.yaml")


@topics.command("check")
@click.argument("file", type=FILE)
def topics_check(file: Path) -> None:
    """Judge a topic file: keys, ids, splits, balance of lengths and of statement keys.

    \b
    Example:  stance topics check my_topics/climate.yaml
    """
    from harness.topics_cli import check_topic

    lines, good = check_topic(file)
    click.echo("\n".join(lines))
    if not good:
        raise SystemExit(2)


@main.command()
def doctor() -> None:
    """What is installed, and what would run where."""
    from harness.terminal import print_doctor

    print_doctor()


@main.command("tasks-path")
def tasks_path() -> None:
    """The packaged task folder, for: lm_eval --include_path "$(stance tasks-path)"."""
    from harness.lmeval.roots import packaged_root

    click.echo(str(packaged_root()))


if __name__ == "__main__":
    sys.exit(main())
