"""What a NeuronLens study found, in sentences, tables and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.report.sheet import Picture, Section, Sheet
from harness.report.tables import number
from harness.statistics import Estimate, Resampled, leave_one_out, resampled_means
from plugins.neuronlens_concepts import ConceptTask
from plugins.neuronlens_effects import BESIDE, Condition, changes, levels
from plugins.neuronlens_picture import picture, words

NORMAL = 0.05


@dataclass(frozen=True)
class Found:
    """Everything that a study measured.

    Attributes:
        settings: of the study.
        train: answers to the texts to fit on (`ask`), and `kept`, how many of them were fitted on.
        frames: answers by condition.
        diagnostics: `fired`, `overlap` and `shape`.
        masked: concepts whose ranges were masked.
    """

    settings: Any
    task: ConceptTask
    train: pd.DataFrame
    kept: int
    frames: Mapping[Condition, pd.DataFrame]
    diagnostics: Mapping[str, pd.DataFrame]
    masked: tuple[str, ...]


def sheet(found: Found) -> Sheet:
    """The page."""
    changed, level = changes(found.frames), levels(found.frames, found.masked)
    s = found.settings
    sentences = [_asked(found), _engines(found), *_effects(found, changed), *_neutral(found, changed)]
    sentences += [*_firing(found), *_shapes(found)]
    ends = {"change": ("low", "high"), "net": ("net_low", "net_high")}
    kinds: dict[str, Any] = dict.fromkeys(("change", "net"), "signed")
    accuracy = changed[changed["measure"] == "correct"]
    others = changed[changed["measure"] != "correct"]
    seen = accuracy[accuracy["mask"] != BESIDE]
    sections = (
        Section(
            "accuracy",
            "Change of accuracy by mask",
            "net: less what as many random dimensions of the layer do under the same mask, mean over seeds. selectivity: "
            "target less complement; below 0 the concept lost more. 95% intervals of the item bootstrap, one by one: with "
            "many rows some exclude 0 by chance.",
            _named(accuracy),
            Picture("Change of accuracy on a concept's texts and on the others", words(seen), picture(seen)),
            ends,
            kinds,
        ),
        Section("others", "Change of confidence and of log perplexity", "Read as above; log perplexity in nats per token.",
                _named(others), None, ends, kinds),
        Section("levels", "As measured", "confidence: the right option's share of the options' probability; mass: the "
                "options' share of all probability.", level),
        Section("firing", "How often the ranges fire", "Share of the salient dimensions inside their range, on the texts "
                "measured: at the last token and over all tokens.", _fired(found)),
        Section("overlap", "Overlap of two concepts' ranges", "Intersection over union, mean over the dimensions salient "
                "for both.", found.diagnostics["overlap"]),
        Section("shape", "How normal the activations are", "Over the salient dimensions. The KS test takes mean and "
                "deviation from the same values, so its p is too large: a small one speaks against normality, a large one "
                "for nothing.", _shape(found)),
    )  # fmt: skip
    about = {
        **s.model_dump(mode="json"),
        "fitted on": found.kept,
        "measured": int(next(iter(found.frames.values()))["concept"].notna().sum()),
    }
    return Sheet(
        f"NeuronLens: {s.name}", f"{s.model} \N{MIDDLE DOT} arXiv 2502.06809", tuple(sentences), sections, about
    )


def _mean(values: Any, seed: int = 0) -> Estimate:
    row = np.asarray(values, dtype=float)
    draws = resampled_means(row[None], (seed, 0))[:, 0]
    return Resampled(float(row.mean()), draws, (leave_one_out(row),), len(row)).estimate()


def _asked(found: Found) -> str:
    """How well the model does the task at all, and what was fitted on."""
    base = next(rows for condition, rows in found.frames.items() if condition.concept is None)
    accuracy, chance = _mean(base["correct"].dropna()), 1 / len(found.task.names)
    over = accuracy.low > chance
    right, names = int(found.train["correct"].sum()), ", ".join(found.task.names)
    mass = _percent(float(base["mass"].mean()))
    fitted = "those" if found.settings.answered_right else f"all {found.kept}"
    return (
        f"Of {len(found.train)} texts to fit on the model answers {right} right, and ranges are fitted on {fitted}; on the "
        f"{accuracy.n} others measured its accuracy is {_level(accuracy)}, {'above' if over else 'not told from'} the "
        f"chance of {number(chance, 'percent')} among {names} (the options hold {mass} of all probability)"
        + ("." if over else ": what a mask takes from it cannot be read as a concept's.")
    )


def _engines(found: Found) -> str:
    """The noise floor: the base again, on the other engine."""
    bases = [rows for condition, rows in found.frames.items() if condition.concept is None]
    if len(bases) < 2:
        return "The base was asked on one engine alone, so what an engine changes by itself was not measured."
    one, other = (rows[rows["concept"].notna()] for rows in bases[:2])
    apart = float((one["confidence"].to_numpy() - other["confidence"].to_numpy()).__abs__().max())
    turned = int((one["correct"].to_numpy() != other["correct"].to_numpy()).sum())
    return (
        f"Noise floor: the same model on the other engine moves a text's confidence by {apart:.1e} at most and turns "
        f"{turned} of {len(one)} answers."
    )


def _effects(found: Found, changed: pd.DataFrame) -> list[str]:
    said = []
    rows = changed[(changed["measure"] == "correct") & (changed["mask"] != BESIDE)]
    for (concept, mask), part in rows.groupby(["concept", "mask"], sort=False):
        by = {row["part"]: row for row in part.to_dict("records")}
        target, rest, own = by["target"], by["complement"], by["selectivity"]
        verdict = (
            "cannot be told from its control"
            if not own["net_low"] > 0 and not own["net_high"] < 0
            else "the concept fares worse than the others"
            if own["net"] < 0
            else "the concept fares better than the others, against the claim"
        )
        said.append(
            f"{_title(str(mask))} of {found.task.names[str(concept)]}: accuracy {_move(target)} on its texts "
            f"(random dimensions: {_percent(target['random'])}), {_move(rest)} on the others ({_percent(rest['random'])}); "
            f"selectivity net of random dimensions {_points(own)}: {verdict}."
        )
    for concept, part in changed[(changed["mask"] == BESIDE) & (changed["measure"] == "correct")].groupby("concept"):
        row = part[part["part"] == "complement"].to_dict("records")[0]
        plain = Estimate(row["change"], row["low"], row["high"], row["n"])
        verdict = (
            "it spares the others, more than on random dimensions"
            if plain.low > 0 and row["net_low"] > 0
            else "it spares the others, which cannot be told from what it does on random dimensions"
            if plain.low > 0
            else "it costs the others more"
            if plain.high < 0
            else "the two cannot be told apart there"
        )
        ends = f"{number(plain.value, 'points')} [{number(plain.low, 'points')}, {number(plain.high, 'points')}]"
        said.append(
            f"Beside the full mask of {found.task.names[str(concept)]}, the range mask leaves {ends} accuracy on the others "
            f"(net of random dimensions {_points(row)}): {verdict}."
        )
    return said


def _neutral(found: Found, changed: pd.DataFrame) -> list[str]:
    rows = changed[(changed["measure"] == "log_perplexity") & (changed["mask"] == "range")]
    said = []
    for row in rows.to_dict("records"):
        clear = row["net_low"] > 0 or row["net_high"] < 0
        verdict = f"{'more' if row['net'] > 0 else 'less'} than random ones" if clear else "not told from random ones"
        before, after, random = (f"{math.exp(row[key]):.4g}" for key in ("base", "masked", "random"))
        said.append(
            f"Range mask of {found.task.names[row['concept']]}: perplexity of neutral text {before} \N{RIGHTWARDS ARROW} "
            f"{after} (random dimensions {random}), {verdict}."
        )
    return said


def _firing(found: Found) -> list[str]:
    said, rows = [], found.diagnostics["fired"]
    for concept in found.masked:
        own = rows[rows["ranges_of"] == concept]
        on_target = (own["text_of"] == concept).to_numpy()
        target, rest = _mean(own.loc[on_target, "last"]), _mean(own.loc[~on_target, "last"])
        apart = target.low > rest.high or target.high < rest.low
        said.append(
            f"At the last token the ranges of {found.task.names[concept]} hold {_level(target)} of the salient dimensions on "
            f"its texts and {_level(rest)} on the others: "
            + ("they fire differently." if apart else "firing does not tell them apart (intervals overlap).")
        )
    return said


def _shapes(found: Found) -> list[str]:
    rows = found.diagnostics["shape"]
    rows = rows[rows["salient"] & rows["normal"].notna()]
    if rows.empty:
        return ["No salient dimension varies, so normality was not tested."]
    against = float((rows["normal"] < NORMAL).mean())
    return [
        f"A Kolmogorov-Smirnov test that is too lenient speaks against normality in {number(against, 'percent')} of the "
        f"salient dimensions (p below {NORMAL:g}, uncorrected); median skew {rows['skew'].median():.2f}, median excess "
        f"kurtosis {rows['kurtosis'].median():.2f}."
    ]


def _fired(found: Found) -> pd.DataFrame:
    rows = found.diagnostics["fired"]
    rows = rows.assign(on=np.where(rows["ranges_of"] == rows["text_of"], "target", "complement"))
    table = rows.groupby(["ranges_of", "on"], sort=False)[["last", "all"]].mean().reset_index()
    return table.rename(columns={"ranges_of": "ranges of", "on": "texts", "last": "last token", "all": "all tokens"})


def _shape(found: Found) -> pd.DataFrame:
    rows = found.diagnostics["shape"]
    rows = rows[rows["salient"]].assign(against=lambda r: r["normal"] < NORMAL)
    grouped = rows.groupby("concept", sort=False)
    table = grouped.agg(
        dimensions=("salient", "size"), skew=("skew", "median"), kurtosis=("kurtosis", "median"), p=("normal", "median")
    )
    table["p below 0.05"] = grouped["against"].mean()
    names = {"skew": "median skew", "kurtosis": "median excess kurtosis", "p": "median KS p"}
    return table.rename(columns=names).reset_index()


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    label = rows["mask"] + " \N{MIDDLE DOT} " + rows["concept"] + " \N{MIDDLE DOT} " + rows["part"]
    return rows.drop(columns=["mask", "concept", "part", "n"]).assign(row=label)[
        ["row", *(c for c in rows.columns if c not in ("mask", "concept", "part", "n"))]
    ]


def _title(mask: str) -> str:
    return {"range": "Range mask", "full": "Full mask", "damp": "Damping"}.get(mask, f"Replacement by {mask}")


def _percent(value: float) -> str:
    return number(value, "percent")


def _level(estimate: Estimate) -> str:
    return f"{_percent(estimate.value)} [{_percent(estimate.low)}, {_percent(estimate.high)}]"


def _move(row: Mapping[Any, Any]) -> str:
    return f"{_percent(row['base'])} \N{RIGHTWARDS ARROW} {_percent(row['masked'])}"


def _points(row: Mapping[Any, Any]) -> str:
    return f"{number(row['net'], 'points')} [{number(row['net_low'], 'points')}, {number(row['net_high'], 'points')}]"
