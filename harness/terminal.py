"""What the commands print: tables for people on standard output, paths of what was written."""

from __future__ import annotations

import json
import math
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.compare import Comparison
from harness.lmeval.roots import all_roots
from harness.runs import PACKAGES, Run
from harness.topics import FORMATS, GROUP, find_topics

# Where nobody's window sets a width (a pipe, a log), tables are drawn whole.
console = Console(width=None if sys.stdout.isatty() else 200)


def _number(value: Any) -> str:
    return f"{value:+.3f}" if isinstance(value, (int, float)) and not math.isnan(value) else "-"


def print_measurement(run: Run) -> None:
    """Stance per topic and format, with refusals, and where the run is."""
    results = json.loads((run.path / "results.json").read_text(encoding="utf-8"))["results"]
    table = Table(title=f"Stance, -1 left to +1 right: {run.manifest['spec']['model']}", title_justify="left")
    for column in ("topic", "pairs (nats/token)", "pairs (share)", "statements", "open", "refused or empty"):
        table.add_column(column, justify="left" if column == "topic" else "right")
    topics = sorted({_topic(task) for task in results if task.endswith(FORMATS)} - {None}, key=str)
    for topic in topics:
        pairs, statements, opened = (results.get(f"{GROUP}_{topic}_{f}", {}) for f in FORMATS)
        silent = [opened.get(f"{label},none") for label in ("refused", "empty")]
        table.add_row(
            str(topic),
            _number(pairs.get("nats,none")),
            _number(pairs.get("stance,none")),
            _number(statements.get("stance,none")),
            _number(opened.get("stance,none")),
            f"{sum(silent):.0%}" if None not in silent else "-",
        )
    if topics:
        console.print(table)
    others = [task for task in results if not task.startswith(GROUP)]
    for task in others:
        shown = {k.removesuffix(",none"): v for k, v in results[task].items() if isinstance(v, float)}
        console.print(f"{task}: {shown}")
    if run.manifest["spec"]["limit"] is not None:
        console.print(f"Partial: at most {run.manifest['spec']['limit']} documents per task.")
    console.print(f"Run: {run.path}", highlight=False)


def _topic(task: str) -> str | None:
    kind = next((f for f in FORMATS if task.endswith(f"_{f}")), None)
    return task.removeprefix(f"{GROUP}_").removesuffix(f"_{kind}") if kind and task.startswith(GROUP) else None


def print_tune(run: Run) -> None:
    """Loss, how far the weights moved, and the hold's proof."""
    manifest = run.manifest
    moved = manifest["moved"]
    console.print(
        f"Trained {manifest['steps']} steps, loss {manifest['loss'][0]:.3f} -> {manifest['loss'][-1]:.3f}; "
        f"{moved['share_of_weights']:.1%} of the weights moved (rms {moved['root_mean_square']:.2g})."
    )
    if hold := manifest.get("hold"):
        console.print(
            f"Held: {hold['neurons']} neurons of {hold['site']}, {hold['held_entries']} entries, all bit-identical to the "
            f"base; {hold['moved_beside_them']} entries beside them moved."
        )
    console.print(f"Run: {run.path}", highlight=False)


def print_localization(run: Run) -> None:
    """Sizes of the sets, overlap and what the ranking follows."""
    d = json.loads((run.path / "localization.json").read_text(encoding="utf-8"))
    stability = "not measured" if d["stability"] is None else f"{d['stability']:.2f}"
    console.print(
        f"{d['selected']} neurons of {d['layers']} x {d['width']} selected per topic; {d['general']} are general "
        f"({d['general_share']:.0%}); Jaccard of the general sets of two prompt halves: {stability}."
    )
    table = Table("topic", "specific", "rank correlation with activation size")
    for topic, correlation in d["rank_correlation"].items():
        table.add_row(topic, str(sum(d["per_layer"][topic])), f"{correlation:.3f}")
    console.print(table)
    console.print(f"Run: {run.path} (general.safetensors is what --hold takes)", highlight=False)


def print_comparison(comparison: Comparison, out: Path) -> None:
    """Write the report; print its table, its verdict and its path."""
    from harness.report import rich_table, write_report

    page = write_report(comparison, out)
    console.print(rich_table(comparison, console.width))
    for sentence in [*comparison.verdict, *(f"Note: {w}" for w in comparison.warnings)]:
        console.print(sentence, highlight=False)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)


def print_topics(folders: list[Path]) -> None:
    """Every topic that a command would see."""
    table = Table("topic", "train", "measure", "statements", "file")
    for topic in find_topics([*all_roots(), *folders]).values():
        sizes = [len(topic.split("train")), len(topic.split("measure")), len(topic.statements)]
        table.add_row(topic.topic, *map(str, sizes), str(topic.path))
    console.print(table)


def print_doctor() -> None:
    """Versions, device, cache and models."""
    import os
    import platform

    import torch

    from harness.models import EMBEDDED, cache_folder, device

    table = Table("what", "found", title="stance doctor", title_justify="left")
    table.add_row("python", platform.python_version())
    for package in ("stance-harness", *PACKAGES):
        try:
            table.add_row(package, version(package))
        except PackageNotFoundError:
            table.add_row(package, "not installed: run make setup")
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    table.add_row("vLLM and Torch would run on", f"{device()} ({name})")
    cache = cache_folder()
    place = cache if cache.exists() else cache.parent if cache.parent.exists() else Path.home()
    table.add_row("cache", f"{cache} ({shutil.disk_usage(place).free / 2**30:.0f} GiB free)")
    for model in EMBEDDED:
        made = (cache / "models" / model / "config.json").is_file()
        table.add_row(model, "ready" if made else f"not made: stance models get {model}")
    table.add_row("topics", ", ".join(find_topics(all_roots())))
    console.print(table)
