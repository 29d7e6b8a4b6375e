"""One measure over several runs, paired by item: point values and one shared set of bootstrap draws per topic."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness import statistics as st

if TYPE_CHECKING:
    from harness.compare import Measured


def item_values(samples: pd.DataFrame, kind: str, value: str) -> pd.DataFrame:
    """topic, item, value: variants averaged into their item."""
    rows = samples[samples["format"] == kind]
    if rows.empty:
        return pd.DataFrame(columns=["topic", "item", "value"])
    values = [json.loads(text).get(value) for text in rows["values"]]
    numbers = rows.assign(value=pd.to_numeric(pd.Series(values, index=rows.index), errors="coerce"))
    return numbers.groupby(["topic", "item"], sort=True)[["value"]].mean().reset_index()


class PairedMeasure:
    """All runs under one measure. Rows come out as the frames of a Comparison have them."""

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
