"""index.html: what the template is given. Everything it prints is escaped; only our own SVG is markup."""

from __future__ import annotations

import json
import math
import shlex
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.report import content, figures, findings, svg, tables
from harness.report.templates import environment

if TYPE_CHECKING:
    from harness.compare import Comparison

SHOWN = 60
CUT = 600
FILES = ("report.md", "summary.csv", "shifts.csv", "stance.csv", "samples.csv", "comparison.json")


def render(comparison: Comparison) -> str:
    """The page as one string."""
    jinja = environment()
    jinja.filters["topic"] = content.topic_name
    jinja.filters["signed"] = tables.number
    return jinja.get_template("template.html.j2").render(_context(comparison)).lstrip()


def _context(comparison: Comparison) -> dict[str, Any]:
    headline, *others = content.measures_of(comparison)
    chosen, total = samples(comparison)
    return {
        "c": comparison,
        "headline": content.title_of(comparison, headline),
        "summary": content.summary(comparison, headline),
        "stance": _stance(comparison, headline),
        "shift": _shift(comparison, headline),
        "noise": bool(content.runs_of(comparison, "noise")),
        "tuned": bool(content.runs_of(comparison, "tuned")),
        "control": bool(content.runs_of(comparison, "control")),
        "matrices": [m for role in ("tuned", "inhibited") if (m := content.matrix(comparison, headline, role))],
        "layers": _layers(comparison.localization) if comparison.localization else None,
        "others": [(content.title_of(comparison, name), _all_tables(comparison, name)) for name in others],
        "rates": _rates(comparison),
        "samples": chosen,
        "total": total,
        "cut": CUT,
        "runs": [_run(run) for run in comparison.runs],
        "models": list(dict.fromkeys(str(run["model"]) for run in content.runs_of(comparison, "base"))),
        "files": FILES,
        "version": __version__,
    }


def _stance(comparison: Comparison, measure: str) -> dict[str, Any] | None:
    drawn = findings.groups(comparison, measure, "stance")
    if not drawn:
        return None
    title = content.title_of(comparison, measure)
    return {
        "finding": findings.stance_finding(comparison, measure),
        "about": f"{title}, {content.items(content.records(comparison.stance, measure=measure), ' per topic')}",
        "words": findings.described(drawn),
        "svg": svg.both("stance", lambda width: figures.stance(drawn, title, width)),
        "table": content.by_topic(comparison, measure, "stance"),
    }


def _shift(comparison: Comparison, measure: str) -> dict[str, Any] | None:
    drawn = findings.groups(comparison, measure, "shift")
    if not drawn:
        return None
    title = f"shift, {content.title_of(comparison, measure)}"
    rows = content.records(comparison.shifts, measure=measure)
    return {
        "finding": findings.shift_finding(comparison, measure),
        "about": f"{content.title_of(comparison, measure)}, {content.items(rows, ' per topic')}",
        "words": findings.described(drawn),
        "svg": svg.both("shift", lambda width: figures.shift(drawn, title, width)),
        "table": content.by_topic(comparison, measure, "shift"),
    }


def _layers(found: dict[str, Any]) -> dict[str, Any]:
    general = [int(n) for n in found["per_layer"].get("general", [])]
    specific = {content.topic_name(k): [int(n) for n in v] for k, v in found["per_layer"].items() if k != "general"}
    words = [
        f"{name}: {', '.join(str(n) for n in counts)}" for name, counts in {"General": general, **specific}.items()
    ]
    correlation = [
        tables.Row(content.topic_name(topic), (tables.Cell(tables.number(value)),))
        for topic, value in found["rank_correlation"].items()
    ]
    top, halves = found["top"], found.get("stability")
    return {
        "finding": findings.layer_finding(found),
        "about": f"site {found['site']}, {found.get('token_kind', found['tokens'])} tokens, "
        + (f"top {tables.number(top, 'percent')}" if top <= 1 else f"top {top:g}%")
        + (", normalized by the base model's spread" if found["normalized"] else ", not normalized")
        + f"; n = {found['selected']:,} neurons selected per topic"
        + (f"; Jaccard of two halves of the prompts {tables.number(halves, 'plain')}" if halves is not None else ""),
        "words": "Neurons per layer, from layer 0. " + ". ".join(words) + ".",
        "svg": svg.both("layers", lambda width: figures.layers(general, specific, width)),
        "overlap": content.square("Overlap of the selected neurons between topics (Jaccard)", found["overlap"]),
        "correlation": tables.Table(
            "Rank correlation with plain activation size; near 1 means: selected because it is large",
            "Topic",
            ("Correlation",),
            tuple(correlation),
        ),
    }


def _all_tables(comparison: Comparison, measure: str) -> list[tables.Table]:
    drawn = [content.summary(comparison, measure)]
    drawn += [content.by_topic(comparison, measure, which) for which in ("shift", "stance")]
    drawn += [m for role in ("tuned", "inhibited") if (m := content.matrix(comparison, measure, role))]
    return [table for table in drawn if table.rows]


def _rates(comparison: Comparison) -> list[dict[str, Any]]:
    kinds = list(dict.fromkeys(str(kind) for kind in comparison.rates["format"]))
    topics = content.topics_of(comparison, comparison.rates)
    return [
        {
            "format": kind,
            "all": content.rates(comparison, kind),
            "topics": [table for topic in topics if (table := content.rates(comparison, kind, topic))],
        }
        for kind in kinds
    ]


def samples(comparison: Comparison) -> tuple[list[dict[str, Any]], int]:
    """Up to SHOWN prompts, an equal share of each format (their units differ), by largest change from base.

    Prompts without a change (refused on one side) are left out where any has one; samples.csv has them.

    Returns:
        chosen: the prompts with every main run's answer.
        total: how many prompts there are.
    """
    shown = {
        run["label"]: run["role"]
        for run in content.runs_of(comparison, "base", "tuned", "inhibited", "patched", "other")
    }
    asked: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in content.records(comparison.samples):
        key = tuple(str(row[name]) for name in ("format", "topic", "item", "variant"))
        asked.setdefault(key, {})[str(row["run"])] = row
    formats: dict[str, list[dict[str, Any]]] = {}
    for (kind, topic, item, variant), answers in asked.items():
        listed = [_answer(label, shown[label], answers[label]) for label in shown if label in answers]
        any_row = next(iter(answers.values()))
        one = {"topic": topic, "item": item, "variant": variant, "format": kind, "prompt": _cut(any_row["prompt"])}
        formats.setdefault(kind, []).append({**one, "answers": listed, "change": _change(listed)})
    share = SHOWN // max(1, len(formats))
    chosen = []
    for rows in formats.values():
        changed = [one for one in rows if not math.isnan(one["change"])]
        chosen += sorted(changed, key=lambda one: abs(one["change"]), reverse=True)[:share] or rows[:share]
    return chosen, len(asked)


def _answer(label: str, role: str, row: dict[str, Any]) -> dict[str, Any]:
    value = math.nan if row["value"] is None else float(row["value"])
    return {"run": label, "role": role, "value": value, "answer": _cut(row["answer"])}


def _change(answers: list[dict[str, Any]]) -> float:
    """The largest change from base to a plain fine-tune (to any run without one); NaN where one gave no value."""
    base = next((a["value"] for a in answers if a["role"] == "base"), math.nan)
    after = [a for a in answers if a["role"] == "tuned"] or [a for a in answers if a["role"] != "base"]
    changes = [a["value"] - base for a in after]
    return max((change for change in changes if not math.isnan(change)), key=abs, default=math.nan)


def _cut(text: object) -> str:
    whole = str(text).strip()
    return whole if len(whole) <= CUT else whole[:CUT].rstrip() + " \N{HORIZONTAL ELLIPSIS}"


def _run(run: dict[str, Any]) -> dict[str, Any]:
    return {
        **run,
        "words": content.ROLES.get(run["role"], run["role"]),
        "spec": json.dumps(run["spec"], indent=2, ensure_ascii=False, default=str),
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
        "command": shlex.join(str(word) for word in run["command"]),
    }
