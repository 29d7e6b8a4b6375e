"""One measure over several runs, paired by item: point values and one shared set of bootstrap draws per topic."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from harness import statistics as st
from harness.statistics import Resampled, combine

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.compare import Measured

K = TypeVar("K")
T = TypeVar("T")
Parts = dict[str, Resampled]
# A model that never answers has no lean; its diagnosis says why, and it has no shift.
_NO_ANSWER = Resampled(0.0, np.zeros(1), (), 0)


def item_values(samples: pd.DataFrame, kind: str, value: str) -> pd.DataFrame:
    """topic, item, value: variants averaged into their item."""
    rows = samples[samples["format"] == kind]
    if rows.empty:
        return pd.DataFrame(columns=["topic", "item", "value"])
    values = [json.loads(text).get(value) for text in rows["values"]]
    numbers = rows.assign(value=pd.to_numeric(pd.Series(values, index=rows.index), errors="coerce"))
    return numbers.groupby(["topic", "item"], sort=True)[["value"]].mean().reset_index()


def judged_by(tuned: Iterable[tuple[K, T]]) -> dict[K, T]:
    """Topic -> the plain fine-tune that others on it are judged by; a topic with several has none."""
    found: dict[K, list[T]] = {}
    for topic, run in tuned:
        found.setdefault(topic, []).append(run)
    return {topic: runs[0] for topic, runs in found.items() if len(runs) == 1}


def shares_controls(run: Measured, held: list[Measured]) -> bool:
    """Whether another held run has the same topic and share, so that nothing says which controls are whose."""
    key = (run.on_topic, run.detail.get("share"))
    return sum((other.on_topic, other.detail.get("share")) == key for other in held) > 1


class PairedMeasure:
    """All runs under one measure. Rows come out as the frames of a Comparison have them.

    Attributes:
        controls: topics without politics; they are shown and tested, and take no part in spill-over.
    """

    def __init__(
        self, measure: str, runs: list[Measured], tables: dict[str, pd.DataFrame], seed: int, controls: set[str]
    ) -> None:
        self.measure, self.runs, self.controls = measure, runs, controls
        self._shifts: dict[tuple[str, str], Resampled] = {}
        self._means: dict[tuple[str, str], Resampled] = {}
        self._items: dict[tuple[str, str], tuple[Any, Any]] = {}
        self.topics = sorted({t for table in tables.values() for t in table["topic"]})
        for number, topic in enumerate(self.topics):
            # Runs on fewer items (a limited or a patched one) are compared on the items they share with their reference.
            columns = {label: t[t["topic"] == topic].set_index("item")["value"] for label, t in tables.items()}
            for run in runs:
                own = columns[run.label]
                reference = columns.get(run.reference, own)
                common = own.index.intersection(reference.index)
                if not common.empty:
                    pair = (own[common].to_numpy(float), reference[common].to_numpy(float))
                    self._add(run, topic, number, pair, seed)

    def _add(self, run: Measured, topic: str, number: int, pair: tuple[Any, Any], seed: int) -> None:
        """A topic's jackknife stands in its own place; in every other topic's place nothing is left out."""
        draws = st.resampled_means(np.stack(pair), (seed, number))
        means = [
            Resampled(float(st.nanmean(values)), draws[:, column], (st.leave_one_out(values),), len(values))
            for column, values in enumerate(pair)
        ]
        self._means[run.label, topic] = means[0] if np.isfinite(means[0].value) else _NO_ANSWER
        self._shifts[run.label, topic] = combine(lambda a, b: a - b, *means)
        self._items[run.label, topic] = pair

    def _row(self, run: Measured, **more: Any) -> dict[str, Any]:
        return {"run": run.label, "role": run.role, "measure": self.measure, **more}

    def stances(self) -> list[dict[str, Any]]:
        rows = []
        for run in self.runs:
            for topic in self.topics:
                if (run.label, topic) in self._means:
                    e = self._means[run.label, topic].estimate()
                    rows.append(self._row(run, topic=topic, value=e.value, low=e.low, high=e.high, n=e.n))
        return rows

    def shifts(self) -> list[dict[str, Any]]:
        """Shift, interval, permutation p with its corrections over the run's topics, and detectable effect."""
        rows = []
        for run in self.runs:
            if run.reference == run.label:
                continue
            own = []
            for topic in self.topics:
                if (run.label, topic) not in self._shifts:
                    continue
                e = self._shifts[run.label, topic].estimate()
                after, before = self._items[run.label, topic]
                tested = {"p": st.permutation_p(after, before), "mde": st.detectable(after - before)}
                flags = {"on_topic": topic == run.on_topic, "control": topic in self.controls}
                own.append(self._row(run, topic=topic, shift=e.value, low=e.low, high=e.high, n=e.n, **tested, **flags))
            holm, bh = st.corrected(np.array([row["p"] for row in own]))
            rows += [{**row, "p_holm": h, "p_bh": b} for row, h, b in zip(own, holm, bh, strict=True)]
        return rows

    def summary(self) -> list[dict[str, Any]]:
        rows, reductions = [], {}
        tuned = judged_by((run.on_topic, run) for run in self.runs if run.role == "tuned")
        for run in self.runs:
            parts = self._parts(run)
            if parts is None:
                continue
            plain = self._parts(tuned[run.on_topic]) if run.on_topic in tuned else None
            metrics = dict(parts)
            if plain is not None and run.role in ("inhibited", "control") and "on_topic_shift" in parts:
                if "rmse_cross" in parts:
                    metrics["reduction"] = combine(lambda a, b: 1 - a / b, parts["rmse_cross"], plain["rmse_cross"])
                    reductions[run.label] = metrics["reduction"]
                metrics["kept"] = combine(lambda a, b: a / b, parts["on_topic_shift"], plain["on_topic_shift"])
            rows += [self._metric(run, name, found) for name, found in metrics.items()]
        return rows + self._net(reductions)

    def _metric(self, run: Measured, name: str, found: Resampled) -> dict[str, Any]:
        e = found.estimate()
        n = sum(shift.n for (label, _), shift in self._shifts.items() if label == run.label)
        return self._row(run, metric=name, value=e.value, low=e.low, high=e.high, n=n)

    def _net(self, reductions: Parts) -> list[dict[str, Any]]:
        """Reductions less those of the controls of the same share; without shares, of a topic's only held run."""
        rows = []
        held = [run for run in self.runs if run.role == "inhibited"]
        for run in held:
            if shares_controls(run, held):
                continue
            controls = [
                reductions[c.label]
                for c in self.runs
                if c.role == "control"
                and c.label in reductions
                and c.on_topic == run.on_topic
                and c.detail.get("share") == run.detail.get("share")
            ]
            if run.label in reductions and controls:
                net = combine(lambda a, *rest: a - sum(rest) / len(rest), reductions[run.label], *controls)
                rows.append(self._metric(run, "net_reduction", net))
        return rows

    def _parts(self, run: Measured) -> Parts | None:
        """on_topic_shift, rmse_cross, ...; the noise run counts every topic as off topic."""
        if run.reference == run.label:
            return None
        counted = [t for t in self.topics if (run.label, t) in self._shifts and t not in self.controls]
        off = [t for t in counted if t != run.on_topic]
        found = {t: self._placed(run.label, t, counted) for t in counted}
        parts: Parts = {}
        if off:
            parts["rmse_cross"] = combine(st.root_mean_square, *(found[t] for t in off))
            parts["mean_abs_off"] = combine(st.mean_absolute, *(found[t] for t in off))
        if run.on_topic in found:
            parts["on_topic_shift"] = on = found[run.on_topic]
            if off:
                parts["off_on_ratio"] = combine(lambda a, b: a / np.abs(b), parts["mean_abs_off"], on)
        return parts or None

    def _placed(self, run: str, topic: str, counted: list[str]) -> Resampled:
        """A topic's shift with one jackknife array per topic, constant outside its own."""
        own = self._shifts[run, topic]
        sizes = [self._shifts[run, t].n for t in counted]
        places = tuple(
            own.jackknife[0] if t == topic else np.full(size, own.value) for t, size in zip(counted, sizes, strict=True)
        )
        return Resampled(own.value, own.draws, places, own.n)
