"""A comparison for Weights & Biases and for Trackio, which speak one language: a run each, grouped by the comparison."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import pandas as pd

from harness import __version__
from harness.errors import InputError
from harness.sharing import Shared, library

SAMPLES = ["topic", "format", "item", "variant", "prompt", "answer", "value"]


def to_wandb(shared: Shared, project: str, offline: bool = False) -> int:
    """A run of wandb for each run of the comparison; WANDB_MODE and wandb's other settings hold.

    Returns:
        How many runs were written.

    Raises:
        InputError: wandb is missing, or refuses (no login, no such project).
    """
    wandb = library("wandb")
    options: dict[str, Any] = {"reinit": "finish_previous", "settings": wandb.Settings(console="off")}
    options |= {"mode": "offline"} if offline else {}
    for run in shared.comparison["runs"]:
        try:
            opened = wandb.init(project=project, job_type=run["role"], **_about(shared, run), **options)
            opened.summary.update(_flat(shared, run["label"]))
            opened.log({"samples": wandb.Table(dataframe=_answers(shared, run["label"]))})
            opened.finish()
        except (wandb.Error, OSError) as error:
            raise InputError(f"wandb refused run {run['label']} ({error}). --offline writes without a login.") from None
    return len(shared.comparison["runs"])


def to_trackio(shared: Shared, project: str) -> int:
    """A run of Trackio for each run of the comparison, on this machine unless TRACKIO_SPACE_ID says otherwise.

    Returns:
        How many runs were written.

    Raises:
        InputError: trackio is missing, or refuses.
    """
    trackio = library("trackio")
    for run in shared.comparison["runs"]:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it greets once a run
                trackio.init(
                    project=project, embed=False, auto_log_gpu=False, auto_log_cpu=False, **_about(shared, run)
                )
                trackio.log(
                    {**_flat(shared, run["label"]), "samples": trackio.Table(dataframe=_answers(shared, run["label"]))}
                )
                trackio.finish()
        except (ValueError, RuntimeError, OSError) as error:
            raise InputError(f"trackio refused run {run['label']} ({error}); give another --project.") from None
    return len(shared.comparison["runs"])


def _about(shared: Shared, run: dict[str, Any]) -> dict[str, Any]:
    comparison = shared.comparison
    config = {
        **run,
        "stance_harness": __version__,
        "comparison": comparison["title"],
        "warnings": comparison["warnings"],
    }
    return {"name": run["label"], "group": comparison["title"], "config": config}


def _flat(shared: Shared, run: str) -> dict[str, float]:
    """`MEASURE/shift/TOPIC` and so on of every measure; the ends of its interval under `/low` and `/high`."""
    flat = {}
    for measure in shared.comparison["measures"]:
        for name, found in shared.numbers(run, measure).items():
            flat[f"{measure}/{name}"] = found["value"]
            flat |= {f"{measure}/{name}/{end}": found[end] for end in ("low", "high") if found[end] is not None}
    return flat


def _answers(shared: Shared, run: str) -> pd.DataFrame:
    frame = shared.samples.loc[shared.samples["run"] == run, SAMPLES].reset_index(drop=True)
    return frame.astype(object).where(frame.notna(), None)
