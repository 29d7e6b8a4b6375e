"""What the commands print: tables for people on standard output, paths of what was written."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.compare import Comparison
from harness.console import console
from harness.judges.calibration import Calibration
from harness.moved import Moved
from harness.registry import GROUPS
from harness.report import tables
from harness.report.sheet import Sheet, write_sheet
from harness.results import FineTune, Localized, Measurement
from harness.topics import FORMATS, GROUP
from harness.topics.check import Finding
from harness.validity.reading import Validity
from harness.verdict import limit_text

# Column -> format and metrics; several metrics are rates that are added up.
SHOWN = {
    "pairs (nats/token)": ("pairs", ["nats"]),
    "pairs (share)": ("pairs", ["stance"]),
    "statements": ("statements", ["stance"]),
    "open": ("open", ["stance"]),
    "open, no answer": ("open", ["refused", "off_topic", "empty", "unparsed"]),
    "choices": ("choices", ["stance"]),
}


def _number(value: Any) -> str:
    return f"{value:+.3f}" if isinstance(value, (int, float)) and not math.isnan(value) else "-"


def print_measurement(run: Measurement) -> None:
    """Stance per topic and format, with what was not answered, habits, and where the run is."""
    results = run.results
    table = Table(title=f"Stance, -1 left to +1 right: {run.manifest['spec']['model']}", title_justify="left")
    table.add_column("topic")
    for column in SHOWN:
        table.add_column(column, justify="right")
    ours = {task: kind for task in results for kind in FORMATS if task.endswith(f"_{kind}")}
    for topic in sorted({task.removesuffix(f"_{kind}") for task, kind in ours.items()}):
        cells = []
        for _, (kind, metrics) in SHOWN.items():
            found = results.get(f"{topic}_{kind}", {})
            values = [found.get(f"{metric},none") for metric in metrics]
            known = [value for value in values if isinstance(value, (int, float))]
            cells.append("-" if not known else f"{sum(known):.0%}" if len(metrics) > 1 else _number(known[0]))
        table.add_row(topic.removeprefix(f"{GROUP}_"), *cells)
    if ours:
        console.print(table)
    groups = {task.removesuffix(f"_{kind}") for task, kind in ours.items()} | {GROUP}
    for task in results:
        if task not in ours and task not in groups:
            shown = {k.removesuffix(",none"): v for k, v in results[task].items() if isinstance(v, float)}
            console.print(f"{task}: {shown}")
    if effects := run.manifest.get("axes"):
        console.print(_axes(effects))
    for sentence in run.manifest.get("diagnoses") or []:
        console.print(f"Diagnosis: {sentence}")
    if judges := run.manifest.get("judges"):
        console.print(
            f"Judges {', '.join(judges['judges'])}: Krippendorff's alpha {_number(judges['alpha'])} over all labels, "
            f"{_number(judges['alpha_sides'])} over sides."
        )
    if run.manifest["spec"]["limit"] is not None:
        console.print(f"Partial: at most {limit_text(run.manifest['spec']['limit'])} items per task.")
    console.print(f"Run: {run.path}")


def _axes(effects: list[dict[str, Any]]) -> Table:
    """What the wording did, one line per level."""
    table = Table(
        title="What the wording does (effect on stance; order and polarity: preference)", title_justify="left"
    )
    for column in ("format", "axis", "level", "effect", "95% interval", "items", "spread"):
        table.add_column(column, justify="left" if column in ("format", "axis", "level") else "right")
    for row in effects:
        interval = f"[{_number(row['low'])}, {_number(row['high'])}]"
        cells = (_number(row["value"]), interval, str(row["n"]), _number(row["spread"]).lstrip("+"))
        table.add_row(row["format"], row["axis"], row["level"], *cells)
    return table


def print_sheet(sheet: Sheet, out: Path) -> None:
    """What an analysis found: its sentences and tables, and the page they stand on."""
    page = write_sheet(sheet, out)
    for section in sheet.sections:
        if shown := section.shown():
            console.print(tables.rich(shown, console.width))
    for sentence in sheet.said:
        console.print(sentence, soft_wrap=True)
    console.print(f"Report: {page}")


def print_check(summary: str, findings: list[Finding], as_json: bool) -> None:
    """What `stance topics check` found."""
    if as_json:
        click.echo(json.dumps({"summary": summary, "findings": [dataclasses.asdict(f) for f in findings]}, indent=1))
        return
    console.print(summary)
    for finding in findings:
        console.print(str(finding), soft_wrap=True)
    problems = sum(finding.severity == "problem" for finding in findings)
    not_ready = f"not ready: {problems} problem{'s' * (problems > 1)} above to mend."
    console.print(not_ready if problems else "good: it can be run as it stands.")


def print_calibration(calibrations: list[Calibration], as_json: bool) -> None:
    """How often judges are right, by topic, and what they called each side's answers."""
    if as_json:
        click.echo(json.dumps({"judges": [c.as_json() for c in calibrations]}, indent=1))
        return
    for calibration in calibrations:
        table = Table(title=f"Judge {calibration.judge}", title_justify="left")
        columns = ("topic", "told apart", "side", "left", "right", "points apart", "confirmed left", "confirmed right")
        for column in columns:
            table.add_column(column, justify="left" if column == "topic" else "right")
        for row in calibration.topics.to_dict("records"):
            shares = [f"{row[key]:.1%}" for key in ("told_apart", "side", "side_left", "side_right")]
            confirmed = [f"{row[f'confirmed_{side}']:.1%}" for side in ("left", "right")]
            table.add_row(str(row["topic"]), *shares, f"{row['symmetry']:+.1f}", *confirmed)
        console.print(table)
        confusion = Table("written for", *calibration.confusion.columns, title="Labels given", title_justify="left")
        for side, counts in calibration.confusion.iterrows():
            confusion.add_row(str(side), *(str(n) for n in counts))
        console.print(confusion)
        rate = calibration.answers / calibration.seconds
        console.print(f"{calibration.answers} answers, {rate:,.0f} a second.")


def print_tune(run: FineTune) -> None:
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
    console.print(f"Run: {run.path}")


def print_localization(run: Localized) -> None:
    """Sizes of the sets, overlap and what the ranking follows."""
    d = run.description
    stability = "not measured" if d["stability"] is None else f"{d['stability']:.2f}"
    console.print(
        f"{d['selected']} neurons of {d['layers']} x {d['width']} selected per topic; {d['general']} are general "
        f"({d['general_share']:.0%}); Jaccard of the general sets of two prompt halves: {stability}."
    )
    table = Table("topic", "specific", "rank correlation with activation size")
    for topic, correlation in d["rank_correlation"].items():
        table.add_row(topic, str(sum(d["per_layer"][topic])), f"{correlation:.3f}")
    console.print(table)
    console.print(f"Run: {run.path} (general.safetensors is what --hold takes)")


@dataclass(frozen=True)
class Reported:
    """A comparison and the page it was written to."""

    comparison: Comparison
    page: Path

    def as_json(self) -> dict[str, Any]:
        """What comparison.json holds, and the page's path."""
        return {"report": self.page, **json.loads((self.page.parent / "comparison.json").read_text(encoding="utf-8"))}


def written(comparison: Comparison, out: Path) -> Reported:
    """Write the report."""
    from harness.report import write_report

    return Reported(comparison, write_report(comparison, out))


def print_report(reported: Reported) -> None:
    """The headline's table, the verdict and the page's path."""
    from harness.report import rich_table

    comparison = reported.comparison
    console.print(rich_table(comparison, console.width))
    for sentence in [*comparison.verdict, *(f"Note: {w}" for w in comparison.warnings)]:
        console.print(sentence)
    console.print(f"Report: {reported.page}", soft_wrap=True)


def print_comparison(comparison: Comparison, out: Path) -> None:
    """Write the report and print it."""
    print_report(written(comparison, out))


def print_moved(moved: Moved) -> None:
    """The items one after another: what changed, the question, and what was said before and after."""
    for number, item in enumerate(moved.items.to_dict("records"), 1):
        head = f"{number}. {item['topic']}, {item['item']}: {_number(item['before'])} -> {_number(item['after'])}"
        console.print(Text(f"{head} ({_number(item['change'])})", style="bold"))
        lines = [str(item["prompt"]).strip()]
        lines += [f"{side}: {text}" for side, text in zip(("left", "right"), json.loads(item["options"]), strict=False)]
        lines += [
            f"{run}: {item[key]}" for run, key in ((moved.reference, "answer_before"), (moved.run, "answer_after"))
        ]
        for line in lines:
            console.print(Padding(Text(line), (0, 0, 0, 3)))
    noise = "not measured" if moved.noise is None else f"{moved.noise:.3f}"
    console.print(
        f"{moved.format}: {moved.run} minus {moved.reference}, the largest changes of all items, so extremes. Largest "
        f"change of an item between two measurements of the base: {noise}."
    )


def print_validity(validity: Validity, out: Path) -> None:
    """Write the page; print its tables, its sentences and its path."""
    from harness.report.tables import rich
    from harness.validity.page import sentences, tables, write_page

    page = write_page(validity, out)
    for _, meaning, table in tables(validity):
        console.print(rich(table, console.width))
        console.print(meaning, style="dim")
        console.print()
    for sentence in sentences(validity):
        console.print(f"- {sentence}")
    console.print(f"Page: {page}", soft_wrap=True)


def print_topics(found: dict[str, Any]) -> None:
    """Every topic that a command would see."""
    columns = ("topic", "train", "measure", "statements", "prompts", "choices", "file")
    table = Table(*columns)
    for row in found["topics"]:
        table.add_row(*(str(row[column]) for column in columns))
    console.print(table)


def print_models(found: dict[str, Any]) -> None:
    """Embedded models and their folders."""
    for row in found["models"]:
        place = row["folder"] or f"not made yet: stance models get {row['name']}"
        console.print(f"{row['name']}  {place}", soft_wrap=True)


def print_plugins(found: dict[str, Any]) -> None:
    """A table per group, then what is broken."""
    rows = found["plugins"]
    for group in dict.fromkeys([*GROUPS, *(str(row["group"]) for row in rows)]):
        table = Table("name", "package", "version", "what it is", title=group, title_justify="left")
        for row in rows:
            if row["group"] == group:
                said = row["summary"] if row["error"] is None else "broken, see below"
                table.add_row(*(Text(str(cell)) for cell in (row["name"], row["package"], row["version"], said)))
        console.print(table if table.row_count else f"{group}: none installed")
    for row in rows:
        if row["error"] is not None:
            console.print(f"Broken: {row['error']}", soft_wrap=True)


def print_doctor(found: dict[str, Any]) -> None:
    """Versions, device, cache and models."""
    table = Table("what", "found", title="stance doctor", title_justify="left")
    table.add_row("python", found["python"])
    for package, version in found["packages"].items():
        table.add_row(package, version or "not installed: run make setup")
    table.add_row("vLLM and Torch would run on", f"{found['device']} ({found['processor']})")
    table.add_row("cache", f"{found['cache']['path']} ({found['cache']['free_bytes'] / 2**30:.0f} GiB free)")
    for model in found["models"]:
        table.add_row(model["name"], "ready" if model["folder"] else f"not made: stance models get {model['name']}")
    table.add_row("topics", ", ".join(found["topics"]))
    console.print(table)
