"""`stance eval`, and the options of every command that asks a model."""

from __future__ import annotations

from typing import Any

import click

from harness.cli import FILE, FOLDER, answering, main
from harness.engines import ADAPTERS
from harness.errors import InputError

JUDGES = "Who labels open answers: embedded, local:MODEL or endpoint:MODEL@URL; several, separated by commas."


class Limit(click.ParamType):
    """A number of items per task, or one for some formats: `8`, or `pairs=60,open=40`."""

    name = "N|FORMAT=N,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> int | dict[str, int]:
        """click calls this on what was typed."""
        parts = [part.partition("=") for part in str(value).split(",")]
        try:
            if len(parts) == 1 and not parts[0][1]:
                return int(value)
            return {name.strip(): int(number) for name, _, number in parts}
        except ValueError:
            self.fail(f"{value!r} is neither a number nor FORMAT=N, as in pairs=60,open=40.", param, ctx)


def measuring(command: Any) -> Any:
    """Options of every command that asks a model."""
    options = [
        click.option("--tasks", help="lm-eval task names, comma-separated. Default: political_stance."),
        click.option("--limit", type=Limit(), help="At most so many items per task (the run is marked partial)."),
        click.option("--engine", type=click.Choice(["vllm", "torch"]), default="vllm", show_default=True),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "bfloat16", "float32"]),
            default="auto",
            show_default=True,
            help="auto: the checkpoint's; float32 on a CPU without bfloat16 units.",
        ),
        click.option("--chat-template", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True),
        click.option(
            "--max-length", type=click.IntRange(32), default=1024, show_default=True, help="Tokens per request."
        ),
        click.option(
            "--adapters",
            type=click.Choice(ADAPTERS),
            default="merge",
            show_default=True,
            help="Serve an adapter as merged weights, or let vLLM compute it beside the base.",
        ),
        click.option("--judge", default="embedded", show_default=True, help=JUDGES),
        click.option("--axes", help="Other levels of the variants, as in: wording=original,forcing=soft+hard"),
        click.option("--topics-dir", type=FOLDER, multiple=True, help="Folder with topic files of your own."),
        click.option("--data", type=FILE, help="Other people's questions to ask instead (see docs/data.md)."),
        click.option("--seed", type=int, default=0, show_default=True),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def axes_from(text: str | None) -> dict[str, Any]:
    """`wording=original,forcing=soft+hard` as a dictionary; what the keys and levels mean is checked with the topics.

    Raises:
        InputError: a part that is not AXIS=LEVEL.
    """
    found: dict[str, Any] = {}
    for part in filter(None, (text or "").split(",")):
        axis, _, levels = part.partition("=")
        if not levels:
            raise InputError(f"--axes holds {part!r}; expected AXIS=LEVEL or AXIS=LEVEL+LEVEL, separated by commas.")
        found[axis.strip()] = levels.strip() if axis.strip() == "design" else [x.strip() for x in levels.split("+")]
    return found


def asked_from(options: dict[str, Any]) -> Any:
    """What the options of `measuring` ask.

    Raises:
        InputError: anything that can be known to be wrong before a model is loaded.
    """
    from harness.asking import asking

    keys = ("limit", "judge", "topics_dir", "data")
    return asking(names_from(options["tasks"]), **{key: options[key] for key in keys}, axes=axes_from(options["axes"]))


def names_from(text: str | None) -> list[str] | None:
    """Names separated by commas; None when the option was not given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def settings_from(options: dict[str, Any]) -> Any:
    """How the engine is started."""
    from harness.engines import Settings

    return Settings(options["dtype"], options["max_length"], adapters=options["adapters"], seed=options["seed"])


@main.command("eval")
@click.option("--model", required=True, help="Local folder, hub name, or embedded model.")
@click.option("--adapter", type=FOLDER, help="LoRA adapter trained on that model.")
@click.option("--neurons", type=FILE, help="Neuron set to intervene on; needs --op.")
@click.option("--op", "op_text", help="zero, scale=X, constant=X or range=LOW:HIGH:FACTOR.")
@measuring
@click.option("--label", help="Name of the run in a comparison. Default: the folder's name.")
@click.option("--on-topic", help="Topic the model was tuned on, for a comparison.")
@click.option(
    "--role", type=click.Choice(["base", "noise", "tuned", "inhibited", "control", "other"]), help="In a comparison."
)
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="Of open answers.")
@click.option("--order-seed", type=int, help="Ask in a shuffled order (a second run of the base: the noise floor).")
@click.option("--out", type=FOLDER, required=True, help="Run folder to write.")
@answering("print_measurement")
def eval_command(op_text: str | None, tasks: str | None, axes: str | None, **given: Any) -> Any:
    """Measure one model variant: manifest.json, results.json and samples.parquet in --out.

    \b
    Example:  stance eval --model smollm2-135m-instruct --tasks political_stance_race --limit 4 --out runs/base
    """
    from harness.api import evaluate

    return evaluate(op=op_text, tasks=names_from(tasks), axes=axes_from(axes), **given)
