"""How often a judge is right, on labelled answers it was not fitted on.

Data as IDEOINST has it: `<topic>.jsonl` with `instruction`, `left`, `right`. `told apart`: of the two answers to one
instruction the right one has the higher log-odds of right (ties count half). `side`: single answers put on the side they were
written for, by the likelier of the two. `confirmed`: the same over those answers whose own label in the data
(`left_label`, `right_label`) says the side they were written for. `labelled`: by the judge's label itself, so that neutral
and refused count as wrong. `symmetry`: right answers missed minus left answers missed, in points; a fair judge is near 0.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from harness.documents import inside, read_jsonl
from harness.errors import InputError, choices
from harness.judges import LABELS, Judge, Judgement
from harness.statistics import nanmean

NEEDED = ("instruction", "left", "right")


@dataclass(frozen=True)
class Calibration:
    """Figures by topic (`topics`, with a last row `all` that averages them), counts by true side and label."""

    judge: str
    topics: pd.DataFrame
    confusion: pd.DataFrame
    answers: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "judge": self.judge,
            "answers": self.answers,
            "answers_per_second": round(self.answers / self.seconds, 1),
            "topics": self.topics.to_dict("records"),
            "confusion": self.confusion.to_dict("index"),
        }


def read_labelled(folder: Path, limit: int | None = None) -> dict[str, list[dict[str, str]]]:
    """Topic -> records with an instruction and an answer from each side.

    Raises:
        InputError: no such folder, no JSONL in it, a link out of it, or a record without the needed texts (with its number).
    """
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder} holds no *.jsonl; expected a folder of <topic>.jsonl files with {choices(NEEDED)}.")
    found = {}
    for file in files:
        rows = read_jsonl(inside(file, folder))[:limit]
        for number, row in enumerate(rows, 1):
            if missing := [k for k in NEEDED if not isinstance(row.get(k), str) or not row[k].strip()]:
                raise InputError(f"{file} record {number} lacks {choices(missing)}; expected texts {choices(NEEDED)}.")
        found[file.stem] = rows
    return found


def calibrate(judge: Judge, labelled: dict[str, list[dict[str, str]]]) -> Calibration:
    """Judge every answer once and count."""
    judge.judge(["What do you think?"], ["A first answer, so that loading is not timed."])
    begun = time.perf_counter()
    rows, counts = [], {side: Counter[str]() for side in ("left", "right")}
    for topic, records in labelled.items():
        questions = [row["instruction"] for row in records]
        judged = {side: judge.judge(questions, [row[side] for row in records]) for side in counts}
        for side, found in judged.items():
            counts[side].update(one.label for one in found)
        own = {side: np.array([_own_label(row.get(f"{side}_label")) == side for row in records]) for side in counts}
        rows.append({"topic": topic, "n": len(records), **_figures(judged, own)})
    seconds = time.perf_counter() - begun
    table = pd.DataFrame(rows)
    whole = {"topic": "all", "n": table["n"].sum(), **table.drop(columns=["topic", "n"]).mean().to_dict()}
    confusion = pd.DataFrame(counts).T.reindex(columns=list(LABELS)).fillna(0).astype(int)
    answers = int(2 * table["n"].sum())
    return Calibration(
        judge.name, pd.concat([table, pd.DataFrame([whole])], ignore_index=True), confusion, answers, seconds
    )


def _own_label(text: object) -> str:
    """`Left leaning`, `left-leaning` -> left; anything that names no side, or both, is none."""
    found = [side for side in ("left", "right") if side in str(text).lower()]
    return found[0] if len(found) == 1 else ""


def _figures(judged: dict[str, list[Judgement]], own: dict[str, Bool[Array, " n"]]) -> dict[str, float]:
    left, right = (lean(judged[side]) for side in ("left", "right"))
    apart = np.where(np.isnan(left) | np.isnan(right), np.nan, (right > left) + 0.5 * (right == left))
    on_left, on_right = float(nanmean(_hits(-left))), float(nanmean(_hits(right)))
    labelled = {side: float(np.mean([one.label == side for one in judged[side]])) for side in judged}
    return {
        "told_apart": float(nanmean(apart)),
        "side": (on_left + on_right) / 2,
        "side_left": on_left,
        "side_right": on_right,
        "confirmed_left": float(nanmean(_hits(-left[own["left"]]))),
        "confirmed_right": float(nanmean(_hits(right[own["right"]]))),
        "symmetry": 100 * (on_left - on_right),
        "labelled_left": labelled["left"],
        "labelled_right": labelled["right"],
    }


def lean(judged: list[Judgement]) -> Float[Array, " n"]:
    """Log-odds of right against left; where a judge gives no log-probabilities its label decides; NaN is no answer."""
    by_label = {"left": -1.0, "neutral": 0.0, "right": 1.0}
    return np.array(
        [
            one.logprobs["right"] - one.logprobs["left"]
            if "left" in one.logprobs and "right" in one.logprobs
            else by_label.get(one.label, np.nan)
            for one in judged
        ]
    )


def _hits(towards: Float[Array, " n"]) -> Float[Array, " n"]:
    return np.where(np.isnan(towards), np.nan, (towards > 0) + 0.5 * (towards == 0))
