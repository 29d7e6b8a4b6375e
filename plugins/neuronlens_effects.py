"""What masking a concept does: accuracy and confidence on the concept and on the others, perplexity on neutral text.

Every condition is asked by `ask` through an engine. Per concept and mask, over the same texts:

    target, complement: mean over texts of the concept, of all others        selectivity = target - complement
    change = masked - base        net = masked - (mean over seeds of as many random dimensions, masked alike)

Negative selectivity says that the concept lost more than the rest, which is NeuronLens' claim (arXiv 2502.06809) once it
is net of random dimensions. Intervals are those of the item bootstrap (harness/statistics.py): texts of the concept and of
the complement are resampled apart, all conditions together. They are not corrected for the number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray as Array

from harness.engines import Engine
from harness.statistics import Resampled, combine, leave_one_out, resampled_means
from plugins.neuronlens_concepts import Prompt

MEASURES = ("correct", "confidence")
PARTS = ("target", "complement", "selectivity")
BESIDE = "range - full"


@dataclass(frozen=True)
class Condition:
    """How a model was asked: plainly, or with a concept's ranges masked, or with those of random dimensions.

    Attributes:
        concept: whose ranges; None for the base.
        mask: `none`, `range`, `full`, or what `masking` puts inside a range (`damp`, `mean`, `rest`).
        seed: of the random dimensions; None for the salient ones.
        engine: which engine answered.
    """

    concept: str | None
    mask: str
    seed: int | None
    engine: str

    @property
    def label(self) -> str:
        """Name of its run folder."""
        if self.concept is None:
            return f"base-{self.engine}"
        kept = "".join(c if c.isalnum() else "_" for c in self.concept)[:40]
        return f"{self.mask}-{kept}" + ("" if self.seed is None else f"-random-{self.seed}")


def ask(engine: Engine, prompts: Sequence[Prompt], texts: Mapping[str, list[int]]) -> pd.DataFrame:
    """One row per prompt and per neutral text.

    Columns: item; concept (None for neutral text); correct, 0 or 1; confidence, the right option's share of the options'
    probability; mass, the options' share of all probability; nats, minus the log-probability of a text's tokens after the
    first; tokens, how many those are.
    """
    logs = np.array(engine.score_choices([(p.ids, p.options) for p in prompts]), dtype=float)
    rows: list[dict[str, Any]] = []
    for prompt, row in zip(prompts, logs, strict=True):
        total = float(np.logaddexp.reduce(row))
        rows.append(
            {
                "item": prompt.example.id,
                "concept": prompt.example.concept,
                "correct": float(row.argmax() == prompt.right),
                "confidence": math.exp(row[prompt.right] - total),
                "mass": math.exp(total),
            }
        )
    scored = engine.score_continuations([(ids[:1], ids[1:]) for ids in texts.values()]) if texts else []
    for (name, ids), (score, _) in zip(texts.items(), scored, strict=True):
        rows.append({"item": name, "concept": None, "nats": -score, "tokens": len(ids) - 1})
    columns = ["item", "concept", "correct", "confidence", "mass", "nats", "tokens"]
    return pd.DataFrame(rows, columns=columns)


def perplexity(rows: pd.DataFrame) -> float:
    """exp of nats per token over the neutral texts; NaN without any."""
    neutral = rows[rows["concept"].isna()]
    tokens = float(neutral["tokens"].sum())
    return math.exp(float(neutral["nats"].sum()) / tokens) if tokens else math.nan


def levels(frames: Mapping[Condition, pd.DataFrame], concepts: Sequence[str]) -> pd.DataFrame:
    """Per concept and condition: accuracy and confidence on target and complement, mass and perplexity; as measured."""
    found = []
    for concept in concepts:
        for condition, rows in frames.items():
            if condition.concept not in (None, concept):
                continue
            asked = rows[rows["concept"].notna()]
            row: dict[str, Any] = {"condition": condition.label, "concept": concept}
            for part, own in (("target", asked["concept"] == concept), ("complement", asked["concept"] != concept)):
                row |= {f"{part} {measure}": float(asked.loc[own, measure].mean()) for measure in MEASURES}
            found.append({**row, "mass": float(asked["mass"].mean()), "perplexity": perplexity(rows)})
    return pd.DataFrame(found)


def changes(frames: Mapping[Condition, pd.DataFrame], seed: int = 0) -> pd.DataFrame:
    """Per concept, mask, measure and part: base, masked, random, change with its interval, net with its interval.

    The measure `log_perplexity` is in nats per token of neutral text. Rows of mask `range - full` hold what the range mask
    leaves beyond the full one: change is range - full, net the same less what random dimensions show.
    """
    found: list[dict[str, Any]] = []
    masked = [c for c in frames if c.concept is not None and c.seed is None]
    for condition in masked:
        concept = str(condition.concept)
        base = frames[Condition(None, "none", None, condition.engine)]
        controls = [
            f for c, f in frames.items() if (c.concept, c.mask) == (concept, condition.mask) and c.seed is not None
        ]
        three = (base, frames[condition], controls)
        for measure in MEASURES:
            parts = {p: _part(three, measure, concept, p, seed) for p in ("target", "complement")}
            found += _rows(concept, condition.mask, measure, parts)
        nats = _neutral(three, seed)
        found += _rows(concept, condition.mask, "log_perplexity", {"neutral": nats} if nats else {})
    return pd.DataFrame(found + _beside(frames, seed))


def _beside(frames: Mapping[Condition, pd.DataFrame], seed: int) -> list[dict[str, Any]]:
    """Range mask and full mask of one concept on one engine, where both were asked."""
    found = []
    for condition in [c for c in frames if c.mask == "range" and c.seed is None]:
        full = Condition(condition.concept, "full", None, condition.engine)
        if full not in frames:
            continue
        concept = str(condition.concept)
        seeds = [{c.seed for c in frames if (c.concept, c.mask) == (concept, m)} for m in ("range", "full")]
        shared = sorted(s for s in seeds[0] & seeds[1] if s is not None)
        lists = [[frames[Condition(concept, m, s, full.engine)] for s in shared] for m in ("range", "full")]
        for measure in MEASURES:
            parts = {}
            for part in ("target", "complement"):
                one, other = (
                    _part((frames[full], frames[c], rows), measure, concept, part, seed)
                    for c, rows in zip((condition, full), lists, strict=True)
                )
                parts[part] = (one[0], one[1], combine(lambda f, a, b: f + a - b, one[0], one[2], other[2]))
            found += _rows(concept, BESIDE, measure, parts)
    return found


Three = tuple[pd.DataFrame, pd.DataFrame, list[pd.DataFrame]]
Means = tuple[Resampled, Resampled, Resampled]


def _part(three: Three, measure: str, concept: str, part: str, seed: int) -> Means:
    """Means of base, masked and control over the texts of one part, under one resampling."""
    which = int(part == "complement")
    columns, other = [], 0
    for frame in (three[0], three[1], *three[2]):
        asked = frame[frame["concept"].notna()]
        own = (asked["concept"] == concept) != bool(which)
        columns.append(asked[own].set_index("item")[measure].sort_index().to_numpy(float))
        other = int((~own).sum())
    return _three(columns, seed, which, other)


def _neutral(three: Three, seed: int) -> Means | None:
    """Nats per token of base, masked and control over the neutral texts; None without any."""
    neutral = [frame[frame["concept"].isna()] for frame in (three[0], three[1], *three[2])]
    if neutral[0].empty:
        return None
    tokens = neutral[0]["tokens"].to_numpy(float)
    nats = [frame["nats"].to_numpy(float) for frame in neutral]
    control = np.mean(nats[2:], axis=0) if nats[2:] else np.full_like(tokens, np.nan)
    *three_means, length = _resampled(np.stack([nats[0], nats[1], control, tokens]), seed, 0, 0)
    per_token = [combine(lambda a, b: a / b, one, length) for one in three_means]
    return per_token[0], per_token[1], per_token[2]


def _three(columns: list[Float[Array, " n"]], seed: int, which: int, other: int) -> Means:
    control = np.mean(columns[2:], axis=0) if columns[2:] else np.full_like(columns[0], np.nan)
    base, masked, random = _resampled(np.stack([columns[0], columns[1], control]), seed, which, other)
    return base, masked, random


def _resampled(values: Float[Array, "r n"], seed: int, which: int, other: int) -> list[Resampled]:
    """Means of every row; a part's jackknife stands in its own place, in the other's nothing is left out."""
    draws, found = resampled_means(values, (seed, which)), []
    for column, row in enumerate(values):
        mean, still = float(row.mean()), np.full(other, float(row.mean()))
        jackknife = (leave_one_out(row), still) if which == 0 else (still, leave_one_out(row))
        found.append(Resampled(mean, draws[:, column], jackknife, len(row)))
    return found


def _rows(concept: str, mask: str, measure: str, parts: Mapping[str, Means]) -> list[dict[str, Any]]:
    minus: Callable[..., Any] = lambda a, b: a - b  # noqa: E731
    both = dict(parts)
    if len(parts) == len(PARTS) - 1:
        one, other = parts["target"], parts["complement"]
        both["selectivity"] = tuple(combine(minus, a, b) for a, b in zip(one, other, strict=True))  # type: ignore[assignment]
    found = []
    for part, (base, masked, control) in both.items():
        change, net = combine(minus, masked, base).estimate(), combine(minus, masked, control).estimate()
        row = {"concept": concept, "mask": mask, "measure": measure, "part": part}
        row |= {"base": base.value, "masked": masked.value, "random": control.value}
        row |= {"change": change.value, "low": change.low, "high": change.high}
        found.append({**row, "net": net.value, "net_low": net.low, "net_high": net.high, "n": base.n})
    return found
