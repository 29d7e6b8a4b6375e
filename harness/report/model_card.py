"""A section for the model card of each fine-tune: the leading measure as the hub's `model-index`, and in plain words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.report import content
from harness.report.export import slug
from harness.report.tables import NONE, Cell, Row, Table, interval, markdown, number, plain_text
from harness.report.text_files import write_text

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from harness.compare import Comparison

WORDS = {
    "on_topic_shift": "Shift on the topic tuned on",
    "rmse_cross": "Root mean square shift on the other topics",
    "reduction": "Reduction of that against the plain fine-tune",
    "net_reduction": "That reduction less what holding random neurons did",
    "kept": "Share of the on-topic shift kept",
    "mean_abs_off": "Mean absolute shift on the other topics",
    "off_on_ratio": "Mean absolute shift on the other topics over the on-topic shift",
}
LIMITS = (
    "Only the topics above were asked, with the items counted above, in one country's terms.",
    "Log-probabilities and answers of a model are not beliefs.",
    "Intervals cover the choice of items, not the seed of training.",
    "Several topics are compared at once, so some intervals exclude zero by chance.",
)


def write_cards(comparison: Comparison, out: Path) -> None:
    """model-card.md of the first fine-tune, model-card-LABEL.md of each further one.

    Raises:
        OSError: the folder cannot be written.
    """
    taken: set[str] = set()
    for run in content.runs_of(comparison, "tuned", "inhibited"):
        if not content.records(comparison.shifts, measure=comparison.headline, run=run["label"]):
            continue  # asked nothing that the leading measure reads
        name = f"model-card-{slug(run['label'])}" if taken else "model-card"
        while name.lower() in taken:
            name += "-2"
        taken.add(name.lower())
        write_text(out / f"{name}.md", card(comparison, run))


def card(comparison: Comparison, run: dict[str, Any]) -> str:
    """YAML front matter, then the section."""
    from huggingface_hub import ModelCardData

    name = _line(run["model"] or run["label"])
    data = ModelCardData(model_name=name, eval_results=_results(comparison, run))
    return f"---\n{data.to_yaml()}\n---\n\n{_section(comparison, run)}"


def _line(text: object) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(text).split()))


def _results(comparison: Comparison, run: dict[str, Any]) -> list[EvalResult]:
    """Stance and shift of every topic, then the metrics over topics; what is not defined is left to the text."""
    measure, label = comparison.headline, run["label"]
    title, unit = content.title_of(comparison, measure), _unit(comparison)
    found = []
    for key, frame, words in (
        ("value", comparison.stance, "Stance, negative is left"),
        ("shift", comparison.shifts, "Shift from before tuning"),
    ):
        metric = "stance" if key == "value" else "shift"
        for row in content.records(frame, measure=measure, run=label):
            found += _result(run, title, str(row["topic"]), metric, f"{words}{unit}", row, key)
    for metric, _, kind in content.METRICS:
        for row in content.records(comparison.summary, measure=measure, run=label, metric=metric):
            plain = kind in ("percent", "points") or metric == "off_on_ratio"
            found += _result(run, title, None, metric, f"{WORDS[metric]}{'' if plain else unit}", row, "value")
    return sorted(found, key=lambda one: one.dataset_config is None)


def _result(
    run: dict[str, Any], title: str, topic: str | None, metric: str, words: str, row: dict[str, Any], key: str
) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    value, low, high = (float(row[name]) for name in (key, "low", "high"))
    if not math.isfinite(value):
        return []
    known = math.isfinite(low) and math.isfinite(high)
    about = f", 95% interval {low:.3f} to {high:.3f}" if known else ""
    asked = content.topic_name(topic) if topic is not None else "all topics"
    result = EvalResult(
        task_type="text-generation",
        task_name=_line(f"Political stance: {title}"),
        dataset_type="political_stance",
        dataset_name=_line(f"stance-harness {__version__}: {asked}"),
        dataset_config=None if topic is None else _line(topic),
        dataset_revision=run["spec"].get("topics_hash"),
        dataset_args={"items": int(row["n"])},
        metric_type=metric,
        metric_name=_line(f"{words}{about}"),
        metric_value=float(f"{value:.3f}") + 0.0,  # -0.0 becomes 0.0
    )
    return [result]


def _unit(comparison: Comparison) -> str:
    unit = comparison.measures.get(comparison.headline, {}).get("unit")
    return f" ({unit})" if unit else ""


def _section(comparison: Comparison, run: dict[str, Any]) -> str:
    measure, label, text = comparison.headline, run["label"], plain_text
    topic = content.trained_on(comparison, measure).get(label)
    tuned = f"fine-tuned on {content.topic_name(topic).lower()}" if topic else "fine-tuned"
    held = ", with neurons held" if run["role"] == "inhibited" else ""
    rows = content.records(comparison.shifts, measure=measure, run=label)
    asked = f"{text(content.title_of(comparison, measure))}, {content.items(rows, ' per topic')}"
    parts = [
        "## Political stance before and after fine-tuning",
        f"Measured with stance-harness {__version__}: run {text(label)}, {text(tuned)}{held}. {asked}. Negative is "
        "left, positive is right; a shift is after minus before, and brackets are 95% intervals over items.",
        markdown(_topics(comparison, run, topic)),
        "\n".join(f"- {line}" for line in _findings(comparison, run, topic)),
        "Limits:",
        "\n".join(f"- {line}" for line in LIMITS),
    ]
    return "\n\n".join(parts) + "\n"


def _topics(comparison: Comparison, run: dict[str, Any], trained: str | None) -> Table:
    measure = comparison.headline
    stance = {(r["run"], r["topic"]): r for r in content.records(comparison.stance, measure=measure)}
    shifts = content.records(comparison.shifts, measure=measure, run=run["label"])
    body = []
    for row in sorted(shifts, key=lambda one: one["topic"] != trained):
        before, after = (stance.get((name, row["topic"])) for name in (run["reference"], run["label"]))
        cells = (content.cell(before), content.cell(after), content.cell(row, "shift"))
        body.append(Row(content.topic_name(row["topic"]), cells, note="tuned on" if row["topic"] == trained else ""))
    return Table("", "Topic", ("Before", "After", "Shift"), tuple(body))


def _findings(comparison: Comparison, run: dict[str, Any], topic: str | None) -> list[str]:
    """What the metrics say, then the noise floor, the random control and what was partial."""
    lines = [f"{words}: {value}" for words, value in _metrics(comparison, run["label"])]
    noise = [found for other in content.runs_of(comparison, "noise") if (found := _spill(comparison, other["label"]))]
    floor = "; ".join(noise) or "not measured, so a shift cannot be told from chance"
    lines.append(f"Noise floor (the model before tuning, measured again), root mean square over topics: {floor}")
    trained = content.trained_on(comparison, comparison.headline)
    same = [other["label"] for other in content.runs_of(comparison, "control") if trained.get(other["label"]) == topic]
    controls = [f"{plain_text(name)} {found}" for name in same if (found := _spill(comparison, name))]
    if run["role"] == "inhibited" and not controls:
        lines.append("Random control: none was measured, so a reduction is not net of anything")
    elif controls:
        lines.append(f"Random control (as many random neurons held), root mean square off-topic: {'; '.join(controls)}")
    lines += ["Partial run: only some of the items were asked"] if run["partial"] else []
    return lines + [f"Warning: {plain_text(warning)}" for warning in comparison.warnings]


def _metrics(comparison: Comparison, label: str) -> list[tuple[str, str]]:
    found = {r["metric"]: r for r in content.records(comparison.summary, measure=comparison.headline, run=label)}
    cells = [(WORDS[metric], content.cell(found.get(metric), kind=kind)) for metric, _, kind in content.METRICS]
    return [(words, str(cell)) for words, cell in cells if cell.text != NONE]


def _spill(comparison: Comparison, label: str) -> str:
    where = {"measure": comparison.headline, "run": label, "metric": "rmse_cross"}
    rows = content.records(comparison.summary, **where)
    return (
        str(Cell(number(rows[0]["value"], "plain"), interval(rows[0]["low"], rows[0]["high"], "plain"))) if rows else ""
    )
