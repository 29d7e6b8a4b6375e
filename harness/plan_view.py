"""A plan as it is printed: a table of steps, then in sentences what its figures rest on; or the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from harness.costs import EFFICIENCY, rate
from harness.plan import PlannedStep, Row, rows
from harness.planner import Planner

SCHEMA = 1  # of the plan as JSON
STATES = ("there", "begun", "to do", "made otherwise")


def print_plan(name: str, steps: Sequence[PlannedStep], planner: Planner, out: Path, as_json: bool) -> None:
    """Print a study's plan: what is there in `out`, and what the rest would take. Writes nothing else."""
    made = rows(steps, out, lambda step: planner.cost.seconds(step.work, step.dtype))
    said = sentences(made, planner)
    if as_json:
        click.echo(json.dumps(as_data(name, made, said, planner, out), indent=1))
        return
    from harness.console import console

    console.print(table(made, f"Plan of {name} in {out}"))
    for sentence in said:
        console.print(sentence, soft_wrap=True)


def table(made: Sequence[Row], title: str) -> Table:
    """One line per row, and their sum."""
    found = Table(title=title, title_justify="left", show_footer=True)
    numbers = [sum(row.number(state) for row in made) for state in STATES]
    time, disk, cache = _left(made)
    columns = {
        "step": "all",
        "number": str(sum(len(row.steps) for row in made)),
        "there": str(numbers[0]),
        "documents": "",
        "tokens": "",
        "time each": "",
        "time left": duration(time),
        "rests on": "",
        "disk left": size(disk),
        "cache left": size(cache),
    }
    for column, footer in columns.items():
        found.add_column(column, footer, justify="left" if column in ("step", "rests on") else "right")
    for row in made:
        time, disk, cache = _left([row])
        count = len(row.steps)
        found.add_row(
            row.name,
            str(count),
            str(row.number("there")),
            f"{sum(step.documents for step in row.steps) / count:,.0f}",
            f"{sum(step.tokens for step in row.steps) / count:,.0f}",
            duration(row.seconds),
            duration(time),
            row.rests_on,
            size(disk),
            size(cache),
        )
    return found


def sentences(made: Sequence[Row], planner: Planner) -> list[str]:
    """What the figures are and are not."""
    cost = planner.cost
    said = [
        "Nothing was carried out or written. Times and sizes are estimates; documents, tokens and time are of one step."
    ]
    if cost.parameters is None:
        said.append(f"{cost.name}: parameters {cost.source}, so times and sizes are left out.")
    else:
        said.append(
            f"Arithmetic: 2 operations per parameter and token read, 4 in LoRA (2 forward, 2 back to the activations; frozen "
            f"weights need no gradient), 6 in full fine-tuning; {cost.parameters / 1e6:,.1f} million parameters "
            f"({cost.source}), at {EFFICIENCY:.0%} of {_rates(made)}."
        )
    said.append(
        "Tokens are counted by the model's tokenizer."
        if planner.counts.exact
        else "The model's tokenizer is not on this machine: four characters count as a token."
    )
    said.append(
        "Where runs of a step or its kind are finished, their median time stands instead. Not counted: loading, an engine's "
        "start, judges, padding, answers kept from earlier runs (which cost nothing), and checkpoints during training."
    )
    begun = sum(row.number("begun") for row in made)
    if begun:
        said.append(
            f"{begun} begun and not finished: done again, from their checkpoints or kept answers where there are any."
        )
    wrong = [
        (s.folder, f.differs)
        for r in made
        for s, f in zip(r.steps, r.found, strict=True)
        if f.state == "made otherwise"
    ]
    if wrong:
        folder, differs = wrong[0]
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        said.append(
            f"The study would stop: {folder}{more} made otherwise ({differs}). Nothing is overwritten: give another --out, "
            "or remove the folder."
        )
    return said


def as_data(name: str, made: Sequence[Row], said: list[str], planner: Planner, out: Path) -> dict[str, Any]:
    """The plan for programs."""
    time, disk, cache = _left(made)
    return {
        "schema": SCHEMA,
        "name": name,
        "model": planner.model,
        "out": str(out),
        "rows": [_row(row) for row in made],
        "seconds_left": time,
        "bytes_left": disk,
        "cache_bytes_left": cache,
        "about": said,
    }


def _row(row: Row) -> dict[str, Any]:
    time, disk, cache = _left([row])
    steps = [
        {
            "folder": step.folder,
            "state": found.state,
            "differs": found.differs,
            "documents": step.documents,
            "tokens": round(step.tokens),
            "operations_per_parameter": round(step.work),
        }
        for step, found in zip(row.steps, row.found, strict=True)
    ]
    return {
        "name": row.name,
        "kind": row.kind,
        "count": len(row.steps),
        "there": row.number("there"),
        "seconds_each": row.seconds,
        "rests_on": row.rests_on,
        "seconds_left": time,
        "bytes_left": disk,
        "cache_bytes_left": cache,
        "steps": steps,
    }


def duration(seconds: float | None) -> str:
    """A time as one reads it."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: int | None) -> str:
    """Bytes as one reads them."""
    if count is None:
        return "unknown"
    power = next((p for p in (3, 2, 1) if count >= 1000**p), 0)
    return f"{count / 1000**power:.{1 if power > 1 else 0}f} {('B', 'kB', 'MB', 'GB')[power]}"


def _left(made: Sequence[Row]) -> tuple[float | None, int | None, int | None]:
    """Seconds, bytes in the folder and bytes in the cache that are left; None where a part of it is unknown."""
    times = [None if row.seconds is None else row.seconds * len(row.left) for row in made if row.left]
    steps = [step for row in made for step in row.left]
    return (
        None if None in times else sum(t for t in times if t is not None),
        _sum([step.writes for step in steps]),
        _sum([step.caches for step in steps]),
    )


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _rates(made: Sequence[Row]) -> str:
    kinds = sorted({step.dtype for row in made for step in row.steps})
    return " and ".join(f"{rate(kind) / 1e9:,.0f} GFLOP/s ({kind}, measured now)" for kind in kinds)
