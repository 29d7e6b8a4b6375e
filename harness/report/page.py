"""index.html: what the template is given. Everything it prints is escaped; only our own SVG is markup."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from harness import __version__
from harness.quality import COLUMNS
from harness.report import content, dose, figures, findings, headline, quality, samples, svg, tables, tradeoff
from harness.report.templates import environment
from harness.runs import digest

if TYPE_CHECKING:
    from harness.compare import Comparison

MATRICES = ("tuned", "inhibited", "control")
FILES = (
    *("report.md", "summary.csv", "shifts.csv", "stance.csv", "rates.csv"),
    *(f"{name}.csv" for name in COLUMNS),
    *("samples.csv", "samples.parquet", "comparison.json", "tables/", "figures/"),
)


def render(comparison: Comparison) -> str:
    """The page as one string."""
    jinja = environment()
    jinja.filters["topic"] = content.topic_name
    jinja.filters["signed"] = tables.number
    return jinja.get_template("template.html.j2").render(_context(comparison)).lstrip()


def _context(comparison: Comparison) -> dict[str, Any]:
    main, *others = content.measures_of(comparison)
    script = Markup((Path(__file__).parent / "report.js").read_text(encoding="utf-8"))
    asked = samples.gathered(comparison)
    packed, fitting = samples.packed(asked)
    return {
        "c": comparison,
        "lead": headline.sentences(comparison) or comparison.verdict[:2],
        "summary": content.summary(comparison, main),
        "stance": _stance(comparison, main),
        "shift": _shift(comparison, main),
        "tradeoff": _beside(comparison, main, "tradeoff", tradeoff, tradeoff.trades(comparison, main)),
        "noise": bool(content.runs_of(comparison, "noise")),
        "tuned": bool(content.runs_of(comparison, "tuned")),
        "control": bool(content.runs_of(comparison, "control")),
        "matrices": [m for role in MATRICES if (m := content.matrix(comparison, main, role))],
        "dose": _beside(comparison, main, "dose", dose, dose.doses(comparison, main)),
        "layers": _layers(comparison.localization) if comparison.localization else None,
        "others": [(content.title_of(comparison, name), _all_tables(comparison, name)) for name in others],
        "rates": _rates(comparison),
        "quality": quality.parts(comparison),
        "unmeasured": quality.unmeasured(comparison),
        "asked": asked,
        "static": samples.static(asked),
        "packed": packed,
        "fitting": fitting,
        "total": len(asked.asked),
        "cut": samples.CUT,
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "runs": [_run(run) for run in comparison.runs],
        "models": list(dict.fromkeys(str(run["model"]) for run in content.runs_of(comparison, "base"))),
        "files": (*FILES, *(["model-card.md"] if _carded(comparison) else [])),
        "version": __version__,
    }


def _carded(comparison: Comparison) -> bool:
    """Whether a model card is written: the leading measure has a shift of some fine-tune (see model_card.py)."""
    tuned = {run["label"] for run in content.runs_of(comparison, "tuned", "inhibited")}
    return any(row["run"] in tuned for row in content.records(comparison.shifts, measure=comparison.headline))


def _stance(comparison: Comparison, measure: str) -> dict[str, Any] | None:
    drawn, title = findings.groups(comparison, measure, "stance"), content.title_of(comparison, measure)
    if not drawn:
        return None
    return {
        "finding": findings.stance_finding(comparison, measure),
        "about": _about(comparison, measure, comparison.stance),
        "words": findings.described(drawn),
        "svg": svg.both("stance", lambda width: figures.stance(drawn, title, width)),
        "table": content.by_topic(comparison, measure, "stance"),
    }


def _shift(comparison: Comparison, measure: str) -> dict[str, Any] | None:
    drawn, title = findings.groups(comparison, measure, "shift"), content.title_of(comparison, measure)
    if not drawn:
        return None
    return {
        "finding": findings.shift_finding(comparison, measure),
        "about": _about(comparison, measure, comparison.shifts),
        "words": findings.described(drawn),
        "svg": svg.both("shift", lambda width: figures.shift(drawn, f"shift, {title}", width)),
        "table": content.by_topic(comparison, measure, "shift"),
    }


def _beside(
    comparison: Comparison, measure: str, name: str, picture: ModuleType, drawn: dict[str, Any]
) -> dict[str, Any] | None:
    """Held and control fine-tunes beside the plain one; `picture`: the module that draws and words it."""
    if not drawn:
        return None
    return {
        "finding": picture.finding(drawn),
        "about": _about(comparison, measure, comparison.shifts),
        "words": picture.words(drawn),
        "svg": svg.both(name, lambda width: picture.picture(drawn, width)),
        "table": picture.table(drawn),
    }


def _about(comparison: Comparison, measure: str, table: pd.DataFrame) -> str:
    """The measure's name and unit, and how many items it is made of."""
    return f"{content.title_of(comparison, measure)}, {content.items(content.records(table, measure=measure), ' per topic')}"


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
    halves = found.get("stability")
    return {
        "finding": findings.layer_finding(found),
        "about": f"site {found['site']}, {found['token_kind']} tokens, top {found['top']:g}%"
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
    drawn += [m for role in MATRICES if (m := content.matrix(comparison, measure, role))]
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


def _run(run: dict[str, Any]) -> dict[str, Any]:
    """A run's provenance: facts that its manifest and its spec have, in reading order."""
    spec = run["spec"]
    facts = {
        "Command": shlex.join(str(word) for word in run["command"]),
        "Role": run["role"],
        "Compared with": run["reference"]
        if run["reference"] != run["label"]
        else "nothing: others are compared with it",
        "Model": run["model"],
        "Weights": spec.get("weights"),
        "Adapter": spec.get("adapter"),
        "Neurons": spec.get("neurons"),
        "Topics": spec.get("topics_hash"),
        "Spec, SHA-256": digest(spec),
        "Seed": spec.get("seed"),
        "Order seed": spec.get("order_seed"),
        "Started": run.get("started"),
        "Seconds": run["seconds"],
        "Machine": ", ".join(f"{name} {value}" for name, value in (run.get("machine") or {}).items()),
        "Engine": run["engine"],
        "Documents": run["documents"],
        "Partial": "yes" if run["partial"] else "no",
        "Folder": run["path"],
        "Versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    }
    return {
        **run,
        "words": content.ROLES.get(run["role"], run["role"]),
        "facts": {name: value for name, value in facts.items() if value not in (None, "", {})},
        "spec": json.dumps(spec, indent=2, ensure_ascii=False, default=str),
    }
