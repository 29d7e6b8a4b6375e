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

import numpy as np
import pandas as pd

from harness import statistics as st
from harness.errors import InputError, choices
from harness.runs import load_measurement

# In order of standing: S of judged answers is the paper's own figure, the others need no judge.
MEASURES = {
    "open.stance": {"title": "Open answers", "unit": "judged stance -1..1", "format": "open", "value": "stance"},
    "pairs.nats": {"title": "Paired preference", "unit": "nats per token", "format": "pairs", "value": "nats"},
    "pairs.stance": {"title": "Paired choice", "unit": "share right minus left", "format": "pairs", "value": "stance"},
    "statements.stance": {"title": "Statements", "unit": "stance -1..1", "format": "statements", "value": "stance"},
}
RATES = {"open": ("left", "right", "neutral", "refused", "empty"), "statements": ("agree",)}
ROLES = ("base", "noise", "tuned", "inhibited", "control", "patched", "other")
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
        InputError: fewer than two, one folder twice, a folder without a finished measurement, or a label twice.
    """
    if len(paths) < 2:
        raise InputError(f"{len(paths)} run given; a comparison needs at least two: the base first, then the others.")
    runs = []
    for number, path in enumerate(paths):
        manifest, samples = load_measurement(path)
        spec = manifest["spec"]
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
    used = {}
    for name, measure in MEASURES.items():
        tables = {run.label: _items(run, measure["format"], measure["value"]) for run in runs}
        present = [run for run in runs if len(tables[run.label])]
        if len(present) < 2:
            continue
        used[name] = {"title": measure["title"], "unit": measure["unit"]}
        block = _Block(name, present, {run.label: tables[run.label] for run in present}, seed)
        stance += block.stances()
        shifts += block.shifts()
        summary += block.summary()
    if not used:
        raise InputError("The runs share no stance probes; measure them with the same --tasks.")
    _check_prompts(runs)
    frames = [pd.DataFrame(rows) for rows in (stance, shifts, summary)]
    headline = next(iter(used))
    topics = sorted({run.on_topic for run in runs if run.on_topic})
    from harness.verdict import verdict, warnings_of

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
        localization=localization,
    )


def _items(run: Measured, kind: str, value: str) -> pd.DataFrame:
    """topic, item, value: variants averaged into their item."""
    rows = run.samples[run.samples["format"] == kind]
    if rows.empty:
        return pd.DataFrame(columns=["topic", "item", "value"])
    values = [json.loads(text).get(value) for text in rows["values"]]
    numbers = rows.assign(value=pd.to_numeric(pd.Series(values, index=rows.index), errors="coerce"))
    return numbers.groupby(["topic", "item"], sort=True)[["value"]].mean().reset_index()


class _Block:
    """All runs under one measure: point values and one shared set of bootstrap draws per topic."""

    def __init__(self, measure: str, runs: list[Measured], tables: dict[str, pd.DataFrame], seed: int) -> None:
        self.measure, self.runs = measure, runs
        self._pairs: dict[tuple[str, str, str], tuple[float, Any, int]] = {}
        self._means: dict[tuple[str, str], tuple[float, Any, int]] = {}
        self.topics = sorted({t for table in tables.values() for t in table["topic"]})
        for number, topic in enumerate(self.topics):
            # Runs on fewer items (a limited or a patched one) are compared on the items they share with their reference.
            columns = {label: t[t["topic"] == topic].set_index("item")["value"] for label, t in tables.items()}
            for run in runs:
                own = columns[run.label]
                if own.empty:
                    continue
                reference = columns.get(run.reference, own)
                common = own.index.intersection(reference.index)
                if common.empty:
                    continue
                matrix = np.stack([own[common].to_numpy(float), reference[common].to_numpy(float)])
                draws = st.resampled_means(matrix, (seed, number))
                means = st.nanmean(matrix)
                n = len(common)
                self._means[run.label, topic] = (float(means[0]), draws[:, 0], n)
                self._pairs[run.label, run.reference, topic] = (
                    float(means[0] - means[1]),
                    draws[:, 0] - draws[:, 1],
                    n,
                )

    def _row(self, run: Measured, **more: Any) -> dict[str, Any]:
        return {"run": run.label, "role": run.role, "measure": self.measure, **more}

    def stances(self) -> list[dict[str, Any]]:
        rows = []
        for run in self.runs:
            for topic in self.topics:
                if (run.label, topic) in self._means:
                    e = st.estimate(*self._means[run.label, topic])
                    rows.append(self._row(run, topic=topic, value=e.value, low=e.low, high=e.high, n=e.n))
        return rows

    def shifts(self) -> list[dict[str, Any]]:
        rows = []
        for run in self.runs:
            if run.reference == run.label:
                continue
            for topic in self.topics:
                found = self._pairs.get((run.label, run.reference, topic))
                if found:
                    e = st.estimate(*found)
                    on = topic == run.on_topic
                    rows.append(self._row(run, topic=topic, shift=e.value, low=e.low, high=e.high, n=e.n, on_topic=on))
        return rows

    def summary(self) -> list[dict[str, Any]]:
        rows, reductions = [], {}
        tuned = {run.on_topic: run for run in self.runs if run.role == "tuned"}
        for run in self.runs:
            parts = self._parts(run)
            if parts is None:
                continue
            plain = self._parts(tuned[run.on_topic]) if run.on_topic in tuned else None
            metrics = dict(parts)
            if plain is not None and run.role in ("inhibited", "control") and "on_topic_shift" in parts:
                metrics["reduction"] = _ratio(parts["rmse_cross"], plain["rmse_cross"], lambda a, b: 1 - a / b)
                metrics["kept"] = _ratio(parts["on_topic_shift"], plain["on_topic_shift"], lambda a, b: a / b)
                reductions[run.label] = metrics["reduction"]
            n = self._n(run)
            for name, (value, draws) in metrics.items():
                e = st.estimate(value, draws, n)
                rows.append(self._row(run, metric=name, value=e.value, low=e.low, high=e.high, n=n))
        return rows + self._net(reductions)

    def _net(self, reductions: dict[str, Any]) -> list[dict[str, Any]]:
        rows = []
        for run in self.runs:
            controls = [
                reductions[c.label]
                for c in self.runs
                if c.role == "control"
                and c.on_topic == run.on_topic
                and c.detail.get("share") == run.detail.get("share")
            ]
            if run.role != "inhibited" or run.label not in reductions or not controls:
                continue
            own = reductions[run.label]
            value = own[0] - float(np.mean([c[0] for c in controls]))
            draws = own[1] - np.mean([c[1] for c in controls], axis=0)
            e = st.estimate(value, draws, self._n(run))
            rows.append(self._row(run, metric="net_reduction", value=e.value, low=e.low, high=e.high, n=e.n))
        return rows

    def _n(self, run: Measured) -> int:
        return sum(found[2] for key, found in self._pairs.items() if key[0] == run.label)

    def _parts(self, run: Measured) -> dict[str, tuple[float, Any]] | None:
        """on_topic_shift, rmse_cross, ...: (value, draws). The noise run counts every topic as off topic."""
        if run.reference == run.label:
            return None
        found = {
            t: self._pairs[run.label, run.reference, t]
            for t in self.topics
            if (run.label, run.reference, t) in self._pairs
        }
        off = [t for t in found if t != run.on_topic]
        if not off:
            return None
        values = np.array([found[t][0] for t in off])
        draws = np.stack([found[t][1] for t in off], axis=1)
        parts: dict[str, tuple[float, Any]] = {
            "rmse_cross": (float(st.root_mean_square(values)), st.root_mean_square(draws)),
            "mean_abs_off": (float(st.mean_absolute(values)), st.mean_absolute(draws)),
        }
        if run.on_topic in found:
            on = found[run.on_topic]
            parts["on_topic_shift"] = (on[0], on[1])
            absolute = (abs(on[0]), np.abs(on[1]))
            parts["off_on_ratio"] = _ratio(parts["mean_abs_off"], absolute, lambda a, b: a / b)
        return parts


def _ratio(a: tuple[float, Any], b: tuple[float, Any], form: Any) -> tuple[float, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        value = form(np.float64(a[0]), np.float64(b[0]))
        return (float(value) if np.isfinite(value) else float("nan")), form(a[1], b[1])


def _check_prompts(runs: list[Measured]) -> None:
    by_label = {run.label: run for run in runs}
    for run in runs:
        reference = by_label[run.reference]
        both = run.samples.merge(reference.samples, on=KEY, suffixes=("", "_reference"))
        if both.empty:
            raise InputError(
                f"Runs {run.label} and {reference.label} share no documents; measure them with the same tasks."
            )
        differ = both[both["prompt_hash"] != both["prompt_hash_reference"]]
        if len(differ):
            first = differ.iloc[0]
            raise InputError(
                f"Runs {run.label} and {reference.label} were asked {len(differ)} of {len(both)} documents with different "
                f"prompts (first: {first['topic']} {first['item']}). They cannot be paired: measure both with the same "
                "topics and the same chat template."
            )


def _rates(runs: list[Measured]) -> pd.DataFrame:
    rows = []
    for run in runs:
        for kind, labels in RATES.items():
            part = run.samples[run.samples["format"] == kind]
            values = pd.DataFrame([json.loads(text) for text in part["values"]], index=part.index)
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
        parts.append(run.samples[[*KEY, "prompt", "answer"]].assign(run=run.label, value=values))
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
        "seconds": manifest.get("seconds"),
        "spec": manifest["spec"],
        "versions": manifest.get("versions", {}),
        "command": manifest.get("command", []),
    }
