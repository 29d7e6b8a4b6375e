"""Two or more measurements -> what differs, with intervals, noise floor and controls.

S = mean stance over items; shift D[s, t] = S_run(t) - S_reference(t) after tuning on s; RMSE_cross(s) = root mean
square of D[s, t] over t != s; reduction = 1 - RMSE_cross(run) / RMSE_cross(plain tune); on-topic kept = D_run[s, s] /
D_plain[s, s]; net reduction = reduction minus the mean reduction of the random controls (arXiv 2508.02360, and ours for
the net). Runs are paired by document and refused where a prompt differs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import InputError, choices
from harness.judges import LABELS
from harness.paired import PairedMeasure, item_values
from harness.quality import quality
from harness.runs import load_measurement
from harness.shapes import Measured as MeasuredManifest
from harness.shapes import check_shape
from harness.verdict import verdict, warnings_of

# In order of standing: pairs need no judge and no instruction following, and order known groups rightly even on a model
# of 135M parameters (`stance validate`); S of judged open answers is the paper's own figure.
MEASURES = {
    "pairs.nats": {"title": "Paired preference", "unit": "nats per token", "format": "pairs", "value": "nats"},
    "pairs.stance": {"title": "Paired choice", "unit": "share right minus left", "format": "pairs", "value": "stance"},
    "open.stance": {"title": "Open answers", "unit": "judged stance -1..1", "format": "open", "value": "stance"},
    "statements.stance": {"title": "Statements", "unit": "stance -1..1", "format": "statements", "value": "stance"},
    "statements.top": {
        "title": "Statements, likeliest option", "unit": "stance -1..1", "format": "statements", "value": "stance_top"
    },
    "choices.stance": {"title": "Multiple choice", "unit": "stance -1..1", "format": "choices", "value": "stance"},
}  # fmt: skip
RATES = {"open": LABELS, "statements": ("agree", "mass"), "choices": ("declined", "mass")}
SUMMARY = ["run", "role", "measure", "metric", "value", "low", "high", "n"]
KEY = ["topic", "format", "item", "variant"]


@dataclass(frozen=True)
class Comparison:
    """Everything a report prints. Columns are given in `compare`."""

    title: str
    on_topic: str | None
    headline: str
    verdict: list[str]
    warnings: list[str]
    measures: dict[str, dict[str, str]]
    runs: list[dict[str, Any]]
    stance: pd.DataFrame
    shifts: pd.DataFrame
    summary: pd.DataFrame
    rates: pd.DataFrame
    samples: pd.DataFrame
    quality: dict[str, pd.DataFrame]
    localization: dict[str, Any] | None = None


@dataclass
class Measured:
    """One run of a comparison."""

    label: str
    role: str
    path: Path
    manifest: dict[str, Any]
    samples: pd.DataFrame
    reference: str = ""
    on_topic: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def partial(self) -> bool:
        return self.manifest["spec"].get("limit") is not None


def load_runs(paths: list[Path]) -> list[Measured]:
    """Measurements in order; the first is the reference of those that name none.

    Raises:
        InputError: fewer than two, one folder twice, a folder without a finished measurement, a label twice, or a label or
            role that is none.
    """
    if len(paths) < 2:
        raise InputError(f"{len(paths)} run given; a comparison needs at least two: the base first, then the others.")
    runs = []
    for number, path in enumerate(paths):
        manifest, samples = load_measurement(path)
        spec = manifest["spec"]
        check_shape(manifest, MeasuredManifest, Path(path) / "manifest.json", "Measure it again")
        role = spec.get("role") or ("base" if number == 0 else "tuned" if spec.get("on_topic") else "other")
        label = spec.get("label") or Path(path).resolve().name
        detail = {k: spec[k] for k in ("share", "control_seed") if k in spec}
        runs.append(
            Measured(
                label, role, Path(path), manifest, samples, spec.get("reference") or "", spec.get("on_topic"), detail
            )
        )
    labels = [run.label for run in runs]
    if len(set(labels)) < len(labels):
        raise InputError(
            f"Two runs carry one label ({choices(labels)}); measure with --label, or give each folder once."
        )
    for run in runs:
        run.reference = run.reference if run.reference in labels else labels[0]
    return runs


def compare(
    runs: list[Measured], title: str = "Comparison", localization: dict[str, Any] | None = None, seed: int = 0
) -> Comparison:
    """Compare runs with their references, measure by measure.

    Raises:
        InputError: runs that share no documents or whose prompts differ.
    """
    stance, shifts, summary = [], [], []
    used, asked = {}, {}
    controls = {topic for run in runs for topic in run.samples.loc[run.samples["control"], "topic"]}
    for name, measure in MEASURES.items():
        tables = {run.label: item_values(run.samples, measure["format"], measure["value"]) for run in runs}
        present = [run for run in runs if len(tables[run.label])]
        if len(present) < 2:
            continue
        used[name] = {"title": measure["title"], "unit": measure["unit"]}
        asked[name] = tables
        block = PairedMeasure(name, present, {run.label: tables[run.label] for run in present}, seed, controls)
        stance += block.stances()
        shifts += block.shifts()
        summary += block.summary()
    if not used:
        raise InputError("The runs share no stance probes; measure them with the same --tasks.")
    _check_prompts(runs)
    frames = [pd.DataFrame(stance), pd.DataFrame(shifts), pd.DataFrame(summary, columns=SUMMARY)]
    headline = next(iter(used))
    topics = sorted({run.on_topic for run in runs if run.on_topic})
    return Comparison(
        title=title,
        on_topic=topics[0] if len(topics) == 1 else None,
        headline=headline,
        verdict=verdict(frames[1], frames[2], used, headline, topics),
        warnings=warnings_of(runs),
        measures=used,
        runs=[_provenance(run) for run in runs],
        stance=frames[0],
        shifts=frames[1],
        summary=frames[2],
        rates=_rates(runs),
        samples=_samples(runs),
        quality=quality(runs, asked, seed),
        localization=localization,
    )


def _check_prompts(runs: list[Measured]) -> None:
    by_label = {run.label: run for run in runs}
    for run in runs:
        reference = by_label[run.reference]
        both = run.samples.merge(reference.samples, on=KEY, suffixes=("", "_reference"))
        if both.empty:
            raise InputError(
                f"Runs {run.label} and {reference.label} share no documents; measure them with the same tasks."
            )
        _check_variants(run, reference)
        differ = both[both["prompt_hash"] != both["prompt_hash_reference"]]
        if len(differ):
            first = differ.iloc[0]
            raise InputError(
                f"Runs {run.label} and {reference.label} were asked {len(differ)} of {len(both)} documents with different "
                f"prompts (first: {first['topic']} {first['item']}). They cannot be paired: measure both with the same "
                "topics and the same chat template."
            )


def _check_variants(run: Measured, reference: Measured) -> None:
    """Refuse runs that asked an item in other variants: its value is their mean, so it would shift with the wording."""
    asked, before = (one.samples.groupby(KEY[:3])["variant"].agg(frozenset) for one in (run, reference))
    shared = asked.index.intersection(before.index)
    differ = shared[[asked[item] != before[item] for item in shared]]
    if len(differ):
        topic, kind, item = differ[0]
        more = sorted(asked[differ[0]] ^ before[differ[0]])
        raise InputError(
            f"Runs {run.label} and {reference.label} were asked {len(differ)} of {len(shared)} items in different variants "
            f"(first: {topic} {kind} {item}; only one has {choices(more[:4])}). They cannot be paired: measure both with "
            "the same --axes."
        )


def _rates(runs: list[Measured]) -> pd.DataFrame:
    rows = []
    for run in runs:
        for kind, labels in RATES.items():
            part = run.samples[run.samples["format"] == kind]
            values = pd.DataFrame([json.loads(text) for text in part["values"]], index=part.index, dtype=float)
            values = values.reindex(columns=list(labels))
            for topic, index in part.groupby("topic").groups.items():
                for label in labels:
                    rate = float(values.loc[index, label].mean())
                    rows.append(
                        {
                            "run": run.label,
                            "topic": topic,
                            "format": kind,
                            "label": label,
                            "rate": rate,
                            "n": len(index),
                        }
                    )
    return pd.DataFrame(rows, columns=["run", "topic", "format", "label", "rate", "n"])


def _samples(runs: list[Measured]) -> pd.DataFrame:
    parts = []
    for run in runs:
        first = {"pairs": "nats"}
        values = [
            json.loads(text).get(first.get(kind, "stance"))
            for kind, text in zip(run.samples["format"], run.samples["values"], strict=True)
        ]
        parts.append(run.samples[[*KEY, "prompt", "options", "answer"]].assign(run=run.label, value=values))
    return pd.concat(parts, ignore_index=True)


def _provenance(run: Measured) -> dict[str, Any]:
    manifest = run.manifest
    return {
        "label": run.label,
        "role": run.role,
        "reference": run.reference,
        "on_topic": run.on_topic,
        "path": run.path.name,
        "partial": run.partial,
        "model": manifest["spec"].get("model"),
        "engine": manifest["spec"].get("engine"),
        "documents": manifest.get("documents"),
        "started": manifest.get("started"),
        "seconds": manifest.get("seconds"),
        "machine": manifest.get("machine"),
        "spec": manifest["spec"],
        "versions": manifest.get("versions", {}),
        "command": manifest.get("command", []),
    }
