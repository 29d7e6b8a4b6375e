"""`stance compare`, `stance moved`, `stance run` and `stance validate`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from harness.cli import FILE, FOLDER, answering, main
from harness.cli.measuring import asked_from, measuring, settings_from
from harness.errors import InputError


@main.command("compare")
@click.argument("runs", nargs=-1, type=FOLDER)
@click.option("--localization", type=FOLDER, help="Folder of `stance localize`, for the neurons' section.")
@click.option("--title", default="Before and after", show_default=True)
@click.option("--out", type=FOLDER, required=True, help="Folder for the report.")
@answering("print_report")
def compare_command(runs: tuple[Path, ...], localization: Path | None, title: str, out: Path) -> Any:
    """Compare measurements: the base first, then the others. Writes index.html, report.md, CSV and JSON.

    \b
    Example:  stance compare runs/base runs/tuned --out reports/mine
    """
    from harness.api import compare_runs
    from harness.terminal import written

    return written(compare_runs(runs, localization=localization, title=title), out)


@main.command("moved")
@click.argument("folder", type=FOLDER)
@click.option("--run", metavar="LABEL", help="Which run; default: the first fine-tune.")
@click.option("--format", "kind", help="pairs, open, statements or choices; default: the leading measure's.")
@click.option("--topic", "topics", multiple=True, help="These topics alone; can be given several times.")
@click.option("--top", default=10, show_default=True, help="How many items.")
@answering("print_moved")
def moved_command(folder: Path, run: str | None, kind: str | None, topics: tuple[str, ...], top: int) -> Any:
    """Show the items that a run of a comparison moved most, with the question and both answers.

    \b
    Example:  stance moved reports/mine --topic immigration --top 3
    """
    from harness.moved import moved_most
    from harness.sharing import read_folder

    return moved_most(read_folder(folder), run, kind, topics, top)


def _print_schema(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from harness.schema import as_text, plugin_models, schema

        click.echo(as_text(schema(*plugin_models())), nl=False)
        ctx.exit()


@main.command("run")
@click.argument("experiment", type=FILE)
@click.option("--out", type=FOLDER, help="Default: reports/NAME.")
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON schema of experiment files, for editors, and exit.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print the steps, what is there already, estimated time and disk; write nothing."
)
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: print the plan as JSON.")
@click.option(
    "--ray",
    metavar="[ADDRESS]",
    is_flag=False,
    flag_value="",
    help="Carry out the steps on a Ray cluster: at ADDRESS, or the one this machine belongs to, or this machine alone.",
)
def run_command(experiment: Path, out: Path | None, dry_run: bool, as_json: bool, ray: str | None) -> None:
    """Carry out an experiment file; finished steps are kept, so the same command goes on where it stopped.

    \b
    Examples: stance run experiments/demo.yaml --dry-run
              stance run experiments/demo.yaml
              stance run experiments/mitigations.yaml --ray
    """
    from harness.experiment_file import opened
    from harness.locks import locked
    from harness.report.sheet import Sheet
    from harness.terminal import print_comparison, print_sheet

    if as_json and not dry_run:
        raise InputError("--json prints a plan; give it together with --dry-run.")
    study = opened(experiment)
    folder = study.folder(out)
    if dry_run:
        _print_plan(study, folder, as_json)
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(folder))
        if ray is not None:
            from harness.cluster import RayExecutor
            from harness.executor import carried_out_by

            stack.enter_context(carried_out_by(stack.enter_context(RayExecutor(ray or None))))
        made = study.run(study.settings, folder)
        if isinstance(made, Sheet):
            print_sheet(made, folder)
        else:
            print_comparison(made, folder)


def _print_plan(study: Any, out: Path, as_json: bool) -> None:
    from harness.plan import check
    from harness.plan_view import print_plan
    from harness.planner import Planner

    if study.prepare is None or study.plan is None:
        raise InputError("This analysis does not say what its steps are; its `Analysis` needs `prepare` and `plan`.")
    check(study.prepare, study.settings, out)
    planner = Planner(study.settings.model)
    print_plan(study.settings.name, study.plan(study.settings, planner), planner, out, as_json)


@main.command("validate")
@click.option("--model", required=True, help="Local folder, hub name, or embedded model.")
@click.option("--topic", default="immigration", show_default=True, help="Topic the known groups are tuned on.")
@click.option("--recipe", type=FILE, help="YAML with recipe keys for the known groups' full dose.")
@measuring
@click.option("--out", type=FOLDER, help="Default: reports/validity-MODEL.")
def validate_command(model: str, topic: str, recipe: Path | None, out: Path | None, **options: Any) -> None:
    """How good is the measure on this model: reliabilities, axis effects, known groups, agreement of formats.

    Tunes four small models and measures eight times; finished steps are kept. Writes validity.html and validity.json.

    \b
    Example:  stance validate --model smollm2-135m-instruct --limit pairs=60,statements=4,open=40
    """
    from harness.terminal import print_validity
    from harness.training_data import recipe_from
    from harness.validity.study import Plan, default_recipe, validate

    tuning = recipe_from(recipe, {}) if recipe is not None else default_recipe(model)
    folder = out or Path("reports") / f"validity-{Path(model).name}"
    asked, engine, settings, chat = (
        asked_from(options),
        options["engine"],
        settings_from(options),
        options["chat_template"],
    )
    validity = validate(Plan(model, topic, tuning, asked, folder, engine, settings, chat, options["seed"]))
    print_validity(validity, folder)
