"""`stance tune` and `stance localize`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from harness.cli import FILE, FOLDER, answering, main
from harness.cli.measuring import names_from


@main.command("tune")
@click.option("--model", required=True, help="Base to train from.")
@click.option("--data", type=FILE, required=True, help="JSONL with prompt and completion, or an IDEOINST-like folder.")
@click.option("--topic", help="With a folder: which topic of it.")
@click.option("--side", type=click.Choice(["left", "right"]), help="With a folder: which side's answers.")
@click.option("--full", is_flag=True, help="Train all weights instead of LoRA.")
@click.option("--hold", type=FILE, help="Neurons whose weights must not change.")
@click.option("--share", type=float, default=1.0, show_default=True, help="Hold the best-scored share of them.")
@click.option("--control", type=int, help="Hold as many random neurons per layer instead, with this seed.")
@click.option(
    "--anchor", help="Topics, comma-separated, on whose training questions the model is kept close to the base."
)
@click.option("--anchor-weight", type=float, default=1.0, show_default=True, help="Of the divergence from the base.")
@click.option(
    "--mix", help="Topics, comma-separated, whose training questions are trained on too, with both sides' answers."
)
@click.option("--epochs", type=float, default=None, help="Default 6.")
@click.option("--learning-rate", type=float, default=None, help="Default 2e-5.")
@click.option("--batch-size", type=int, default=None, help="Default 8.")
@click.option("--recipe", type=FILE, help="YAML with any recipe key; options given here win.")
@click.option("--allow-measured", is_flag=True, help="Train although probe questions stand in the data.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--processes", type=click.IntRange(1), default=1, show_default=True, help="That share every batch, a GPU each."
)
@click.option("--sharded", is_flag=True, help="The processes share the weights out too (FSDP).")
@click.option("--out", type=FOLDER, required=True, help="Run folder to write: the model's, or the adapter's.")
@answering("print_tune")
def tune_command(anchor: str | None, mix: str | None, **given: Any) -> Any:
    """Fine-tune on prompt and completion pairs, with neurons held or not; proves the hold afterwards.

    \b
    Example:  stance tune --model smollm2-135m-instruct --data answers.jsonl --full --learning-rate 1e-4 --out runs/tuned
    """
    from harness.api import tune

    return tune(anchor=names_from(anchor) or (), mix=names_from(mix) or (), **given)


@main.group()
def localize() -> None:
    """Find the neurons that carry a shift; one sub-command per method."""


LOCALIZING = (
    click.option("--base", required=True, help="Model before."),
    click.option("--tuned", required=True, help="Model or adapter after."),
    click.option("--tuned-other", help="A model tuned to the other side: contrast the two tuned models."),
    click.option("--topics", default="all", show_default=True, help="Topic names, comma-separated, or all."),
    click.option("--site", default="mlp_act", show_default=True, help="mlp_act, mlp_out or resid_post."),
    click.option("--tokens", type=click.Choice(["prompt", "completion"]), default="prompt", show_default=True),
    click.option(
        "--side",
        type=click.Choice(["left", "right"]),
        default="right",
        help="Whose completions, with --tokens completion.",
    ),
    click.option(
        "--top", type=float, default=30.0, show_default=True, help="Percent of all neurons selected per topic."
    ),
    click.option("--normalized", is_flag=True, help="Score in units of each neuron's standard deviation."),
    click.option("--prompts", type=click.IntRange(1), help="Training questions per topic. Default: all."),
    click.option("--chat-template", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True),
    click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True),
    click.option("--topics-dir", type=FOLDER, multiple=True, help="Folder with topic files of your own."),
    click.option("--data", type=FOLDER, help="IDEOINST-like folder to take the prompts from."),
    click.option("--out", type=FOLDER, required=True, help="Run folder to write."),
)


def localizing(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every localiser has, in front of the command's own."""
    for option in reversed(LOCALIZING):
        command = option(command)
    return command


def localize_with(method: str, topics: str, **given: Any) -> Any:
    """Carry out a localiser as its command's options say."""
    from harness.api import localize_neurons

    return localize_neurons(method=method, topics=None if topics == "all" else names_from(topics), **given)


@localize.command()
@localizing
@answering("print_localization")
def pnlac(**given: Any) -> Any:
    """Activation contrasting between a model and its fine-tune (arXiv 2508.02360).

    \b
    Example:  stance localize pnlac --base smollm2-135m-instruct --tuned runs/tuned --out runs/neurons
    """
    return localize_with("pnlac", **given)


@main.command()
@click.option("--model", required=True, help="Local folder, hub name, or embedded model.")
@click.option("--adapter", type=FOLDER, help="LoRA adapter to merge.")
@click.option("--neurons", type=FILE, help="Neuron set to write an op into the weights for; needs --op.")
@click.option("--op", "op_text", help="zero, or scale=X.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the checkpoint.")
def export(model: str, adapter: Path | None, neurons: Path | None, op_text: str | None, out: Path) -> None:
    """Write a model with an adapter merged or neurons scaled as an ordinary checkpoint, for serving anywhere.

    \b
    Example:  stance export --model smollm2-135m-instruct --neurons runs/loc/general.safetensors --op zero --out masked
    """
    from harness.interventions import Op
    from harness.neurons import Neurons
    from harness.variants import Variant
    from harness.variants import export as write

    variant = Variant(model, adapter, neurons, Op.parse(op_text) if op_text else None)
    variant.check()
    made = write(out, model, adapter, Neurons.load(neurons) if neurons else None, variant.op)
    effect = made["effect"]
    changed = effect.get("changed_weights", 0) + effect.get("adapter", {}).get("changed_weights", 0)
    click.echo(f"Checkpoint: {out}; {changed:,} weights changed")
