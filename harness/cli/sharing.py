"""`stance share`: a finished comparison, for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli import FILE, FOLDER, main


@main.group()
def share() -> None:
    """Hand a finished comparison to another tool. Each needs its own package, which is not installed along."""


@share.command("inspect")
@click.argument("comparison", type=FOLDER)
@click.option("--out", type=FILE, required=True, help="File to write: .json or .eval.")
def share_inspect(comparison: Path, out: Path) -> None:
    """Write an eval log of Inspect: a sample per prompt, a score per run.

    \b
    Example:  stance share inspect reports/demo --out logs/demo.json
    """
    from harness.sharing import read_folder
    from harness.sharing.inspect_log import write_log

    click.echo(f"Log: {write_log(read_folder(comparison), out)}")


@share.command("wandb")
@click.argument("comparison", type=FOLDER)
@click.option("--project", default="stance-harness", show_default=True)
@click.option("--offline", is_flag=True, help="Write to the folder wandb/ only; WANDB_MODE is honoured too.")
def share_wandb(comparison: Path, project: str, offline: bool) -> None:
    """Write the comparison's runs to Weights & Biases, as one group.

    \b
    Example:  stance share wandb reports/demo --offline
    """
    from harness.sharing import read_folder
    from harness.sharing.trackers import to_wandb

    click.echo(f"Runs: {to_wandb(read_folder(comparison), project, offline)} in project {project}")


@share.command("trackio")
@click.argument("comparison", type=FOLDER)
@click.option("--project", default="stance-harness", show_default=True)
def share_trackio(comparison: Path, project: str) -> None:
    """Write the comparison's runs to Trackio, as one group.

    \b
    Example:  stance share trackio reports/demo --project stance
    """
    from harness.sharing import read_folder
    from harness.sharing.trackers import to_trackio

    click.echo(f"Runs: {to_trackio(read_folder(comparison), project)} in project {project}")
