"""What a set of runs says about the measure itself.

Runs: the base, the base again in another request order, models tuned left and right on one topic (each at half and at full
dose), and the base's open answers sampled twice. Items are the unit everywhere; intervals are those of statistics.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from harness import statistics as st
from harness.axes import axis_effects, unpacked
from harness.compare import MEASURES
from harness.judges.panel import alpha
from harness.paired import item_values
from harness.statistics import Resampled

# Models of the split-half reliability and of the known-group test, from left to right.
DOSES = ("left", "left-half", "base", "right-half", "right")
LEVEL = 0.05  # of the permutation test too, since an interval over two or three items says little
SCORES = ("pairs.nats", "open.stance", "statements.stance", "choices.stance")


@dataclass(frozen=True)
class Validity:
    """Everything the page prints. Frames have one row per line of their table.

    Attributes:
        known_groups: does every format order left, base and right rightly, on the tuned topic?
        reliability: split-half reliability per topic and measure, over the five models.
        retest: agreement of two samplings of the same open answers.
        axes: effect of wording, order, polarity, forcing and framing on the base.
        formats: correlation of two measures' shifts, over topics and models, and over items asked in both.
        refusals: open answers without an answer, by the asker's framing and by model.
        noise: largest |shift| of the base measured twice, per measure.
    """

    model: str
    topic: str
    known_groups: pd.DataFrame
    reliability: pd.DataFrame
    retest: pd.DataFrame
    axes: pd.DataFrame
    formats: pd.DataFrame
    refusals: pd.DataFrame
    noise: dict[str, float]
    diagnoses: list[str]
    runs: list[dict[str, Any]] = field(default_factory=list)
    limit: Any = None

    def failing(self) -> list[str]:
        """Measures that do not order the known groups: their figures on this model mean nothing."""
        return [str(row["measure"]) for _, row in self.known_groups.iterrows() if not row["passes"]]

    def as_json(self) -> dict[str, Any]:
        """All of it in full precision."""
        frames = {
            name: json.loads(value.to_json(orient="records"))
            for name, value in vars(self).items()
            if isinstance(value, pd.DataFrame)
        }
        others = {name: value for name, value in vars(self).items() if not isinstance(value, pd.DataFrame)}
        return {**others, **frames, "failing": self.failing()}


def read(
    model: str,
    topic: str,
    samples: dict[str, pd.DataFrame],
    diagnoses: list[str],
    runs: list[dict[str, Any]],
    limit: Any,
) -> Validity:
    """Samples by name: those of DOSES, `base-again`, and, where open tasks were asked, `sampled-1` and `sampled-2`."""
    matrices = {measure: _matrix(measure, samples) for measure in SCORES}
    matrices = {measure: found for measure, found in matrices.items() if found is not None}
    return Validity(
        model,
        topic,
        _known_groups(matrices, topic),
        _reliability(matrices, topic),
        _retest(samples["sampled-1"], samples["sampled-2"]) if "sampled-1" in samples else pd.DataFrame(),
        axis_effects(samples["base"]),
        _formats(matrices),
        _refusals(samples),
        _noise(samples),
        diagnoses,
        runs,
        limit,
    )


def _matrix(measure: str, samples: dict[str, pd.DataFrame]) -> pd.DataFrame | None:
    """Item scores: rows (topic, item), one column per model of DOSES; None where the format was not asked."""
    about = MEASURES[measure]
    columns = {}
    for dose in DOSES:
        values = item_values(samples[dose], about["format"], about["value"])
        if values.empty:
            return None
        columns[dose] = values.set_index(["topic", "item"])["value"]
    return pd.DataFrame(columns)


def _estimate(values: np.ndarray) -> st.Estimate:
    """Mean over items with its interval."""
    known = values[np.isfinite(values)]
    if not len(known):
        return st.Estimate(float("nan"), float("nan"), float("nan"), 0)
    draws = st.resampled_means(known[None], 0)[:, 0]
    return Resampled(float(known.mean()), draws, (st.leave_one_out(known),), len(known)).estimate()


def _known_groups(matrices: dict[str, pd.DataFrame], topic: str) -> pd.DataFrame:
    rows = []
    for measure, table in matrices.items():
        own = table.loc[topic]
        left, base, right = (float(own[dose].mean()) for dose in ("left", "base", "right"))
        apart = _estimate((own["right"] - own["left"]).to_numpy(float))
        p = st.permutation_p(own["right"].to_numpy(float), own["left"].to_numpy(float))
        ordered = left < base < right
        passes = ordered and apart.low > 0 and p < LEVEL
        rows.append(
            {"measure": measure, "left": left, "base": base, "right": right, "apart": apart.value, "low": apart.low}
            | {"high": apart.high, "p": p, "n": apart.n, "ordered": ordered, "passes": passes}
        )
    return pd.DataFrame(rows)


def _reliability(matrices: dict[str, pd.DataFrame], topic: str) -> pd.DataFrame:
    """Over the five models: does one half of the items space them as the other half does?"""
    rows = []
    for measure, table in matrices.items():
        for name, own in table.groupby(level=0):
            shifts = own.sub(own["base"], axis=0).T.to_numpy(float)
            differences = (own["right"] - own["left"]).to_numpy(float)
            rows.append(
                {"measure": measure, "topic": name, "tuned": name == topic, "items": shifts.shape[1]}
                | {"split_half": st.split_half(shifts), "mde": st.detectable(differences)}
            )
    return pd.DataFrame(rows)


def _retest(one: pd.DataFrame, two: pd.DataFrame) -> pd.DataFrame:
    """Two samplings of the same questions: item scores' correlation and labels' alpha, per topic and over all."""
    first, second = (unpacked(samples[samples["format"] == "open"]) for samples in (one, two))
    keys = ["topic", "item", "variant"]
    both = first.merge(second, on=keys, suffixes=("_1", "_2"), validate="one_to_one")
    rows = []
    for name, part in [("all", both), *both.groupby("topic")]:
        items = part.groupby(["topic", "item"])[["stance_1", "stance_2"]].mean()
        labels = [[next(iter(json.loads(text).values()), None) for text in part[f"labels_{n}"]] for n in (1, 2)]
        rows.append(
            {"topic": name, "answers": len(part), "items": len(items), "alpha": alpha(labels)}
            | {"items_r": st.correlation(items["stance_1"].to_numpy(float), items["stance_2"].to_numpy(float))}
            | {"shift": float(items["stance_2"].mean() - items["stance_1"].mean())}
        )
    return pd.DataFrame(rows)


def _formats(matrices: dict[str, pd.DataFrame]) -> pd.DataFrame:
    rows = []
    for one, two in combinations(matrices, 2):
        a, b = (matrices[name].drop(columns="base").sub(matrices[name]["base"], axis=0) for name in (one, two))
        topics = [table.groupby(level=0).mean().stack() for table in (a, b)]
        shared = topics[0].index.intersection(topics[1].index)
        by_topic = st.correlation(topics[0][shared].to_numpy(float), topics[1][shared].to_numpy(float))
        items = a.index.intersection(b.index)
        by_item = st.correlation(a.loc[items].to_numpy(float).ravel(), b.loc[items].to_numpy(float).ravel())
        rows.append(
            {
                "one": one,
                "two": two,
                "topics_r": by_topic,
                "points": len(shared),
                "items_r": by_item,
                "items": len(items),
            }
        )
    return pd.DataFrame(rows, columns=["one", "two", "topics_r", "points", "items_r", "items"])


def _refusals(samples: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Rate of refused answers to prompts framed left and right, their difference by item, and the answers' lengths."""
    rows = []
    for name in ("base", "left", "right"):
        table = unpacked(samples[name])
        framed = table[table["format"] == "open"].copy()
        if "framing" not in framed or not {"left", "right"} <= set(framed["framing"]):
            continue
        framed["words"] = [len(answer.split()) for answer in framed["answer"]]
        wide = framed[framed["framing"] != "neutral"].pivot(
            index=["topic", "item"], columns="framing", values=["refused", "words", "stance"]
        )
        difference = _estimate((wide["refused"]["right"] - wide["refused"]["left"]).to_numpy(float))
        rows.append(
            {"model": name, "prompts": len(wide), "left": float(wide["refused"]["left"].mean())}
            | {"right": float(wide["refused"]["right"].mean()), "difference": difference.value}
            | {"low": difference.low, "high": difference.high, "words_left": float(wide["words"]["left"].mean())}
            | {"words_right": float(wide["words"]["right"].mean())}
            | {
                "stance_left": float(wide["stance"]["left"].mean()),
                "stance_right": float(wide["stance"]["right"].mean()),
            }
        )
    return pd.DataFrame(rows)


def _noise(samples: dict[str, pd.DataFrame]) -> dict[str, float]:
    found = {}
    for measure in SCORES:
        about = MEASURES[measure]
        one, two = (
            item_values(samples[name], about["format"], about["value"]).set_index(["topic", "item"])
            for name in ("base", "base-again")
        )
        if len(one):
            shifts = (two["value"] - one["value"]).groupby(level=0).mean()
            found[measure] = float(shifts.abs().max())
    return found
