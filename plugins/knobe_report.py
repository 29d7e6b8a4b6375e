"""The page of the Knobe study: sentences computed from the figures, then tables by model and pictures by site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import InputError
from harness.report.sheet import Section, Sheet
from harness.statistics import PERMUTATIONS, moved_beyond
from plugins.knobe import analyse, anova
from plugins.knobe_figures import NAMES, sweep_picture
from plugins.knobe_ratings import agreement, by_item, parse_rates
from plugins.knobe_trials import analyse_trials
from plugins.layer_patching_effects import ALPHA, difference, patch_effects

SAMPLED, EXPECTED = "sampled", "expected value"
READABLE = 0.5  # share of answers below which sampled ratings are said to describe few answers


@dataclass(frozen=True)
class Findings:
    """What the steps measured.

    Attributes:
        base, again, tuned: the models' labels; further labels in the tables are stitched models.
        trials: trial, temperature, item, condition, answer, rating, model.
        scores: item, condition, rating, mass, model.
        swept: as `plugins.layer_patching_sweep.sweep_ratings`, or None.
        least: the smallest difference of Delta_Knobe of which a share is given.
    """

    name: str
    base: str
    again: str
    tuned: str
    trials: pd.DataFrame
    scores: pd.DataFrame
    swept: pd.DataFrame | None
    least: float
    about: Mapping[str, Any]


def sheet(found: Findings) -> Sheet:
    """The page; what cannot be computed is said in a sentence instead."""
    sentences, sections = [_asked(found)], []
    for part in (_parsed, _sampled, _scored, _by_trials, _agreed, _swept):
        said, shown = part(found)
        sentences += said
        sections += shown
    return Sheet(f"The Knobe effect: {found.name}", "Layer-Patching", tuple(sentences), tuple(sections), found.about)


def _asked(found: Findings) -> str:
    items, trials = found.scores["item"].nunique(), found.trials["trial"].nunique()
    return (
        f"{items} pairs of vignettes were rated from 0 to 10 by {', '.join(found.scores['model'].unique())}: in {trials} "
        "trials with drawn temperatures, and by expected value. Delta_Knobe is the mean rating of harm minus that of help."
    )


def _parsed(found: Findings) -> tuple[list[str], list[Section]]:
    table = parse_rates(found.trials)
    rates = table.groupby("model", sort=False)[["answers", "parsed"]].sum()
    shares = rates["parsed"] / rates["answers"]
    said = ", ".join(f"{model} {share:.1%}" for model, share in shares.items())
    sentence = f"Answers that hold a whole number from 0 to 10: {said}."
    if (shares < READABLE).any():
        sentence += " Sampled ratings describe fewer than half of the answers of some model; read the expected values."
    mass = found.scores.groupby("model", sort=False)["mass"].mean()
    sentence += (
        " Probability on the scale right after the prompt: " + ", ".join(f"{m} {p:.3f}" for m, p in mass.items()) + "."
    )
    labelled = table.assign(model=table["model"] + ", " + table["condition"]).drop(columns="condition")
    return [sentence], [Section("parse_rates", "Answers that could be read", table=labelled, kinds={"rate": "percent"})]


def _sampled(found: Findings) -> tuple[list[str], list[Section]]:
    cells, left_out = by_item(found.trials)
    said = (
        [f"{len(left_out)} pairs are left out of the sampled figures: a cell of theirs has no rating."]
        if left_out
        else []
    )
    return _effects(found, cells, SAMPLED, said)


def _scored(found: Findings) -> tuple[list[str], list[Section]]:
    return _effects(found, found.scores[["item", "condition", "model", "rating"]], EXPECTED, [])


def _effects(found: Findings, cells: pd.DataFrame, scorer: str, said: list[str]) -> tuple[list[str], list[Section]]:
    """Effects, changes and the analysis of variance with items as units, by one scorer."""
    title, key = scorer.capitalize(), scorer.split()[0]
    try:
        result = analyse(cells, reference=found.base)
        variance = anova(cells[cells["model"] != found.again])
    except InputError as error:
        return [*said, f"{title} ratings cannot be analysed: {error}"], []
    assert result.changes is not None
    said += [_effect(title, row) for row in result.effects.to_dict("records") if row["model"] != found.again]
    changes = {row["model"]: row for row in result.changes.to_dict("records")}
    floor = abs(float(changes[found.again]["change"])) if scorer == SAMPLED else 0.0
    against = f"the noise floor of {floor:.3f} (the base asked again)" if scorer == SAMPLED else "zero"
    row = changes[found.tuned]
    moved = moved_beyond(np.array([row["low"]]), np.array([row["high"]]), floor)[0]
    verb = "lies beyond" if moved else "cannot be told from"
    said.append(
        f"{title}: from {found.base} to {found.tuned} Delta_Knobe changes by {_interval(row, 'change')}, which {verb} "
        f"{against}."
    )
    tested = variance.set_index("effect").loc["condition:model"]
    said.append(
        f"{title}: condition x model over {result.n} items F({tested['df_effect']}, {tested['df_error']}) = "
        f"{tested['f']:.3f}, p = {tested['p_gg']:.3g}, partial eta squared {tested['eta2_p']:.3f}."
    )
    frames = (("effects", result.effects, "Delta_Knobe", {"delta": ("low", "high")}),
              ("changes", result.changes, "Change of Delta_Knobe", {"change": ("low", "high")}),
              ("anova", variance, "Analysis of variance, items as units", {}))  # fmt: skip
    return said, [
        Section(f"{name}_{key}", f"{heading} ({scorer})", table=table, intervals=intervals)
        for name, table, heading, intervals in frames
    ]


def _effect(title: str, row: Mapping[Any, Any]) -> str:
    words = f"{title}: {row['model']} rates harm {row['harm']:.2f} and help {row['help']:.2f}, Delta_Knobe "
    words += f"{_interval(row, 'delta')}: "
    if row["low"] > 0:
        return words + "harm is called more intentional."
    return words + ("help is called more intentional." if row["high"] < 0 else "no effect that can be told from zero.")


def _interval(row: Mapping[Any, Any], name: str) -> str:
    return f"{row[name]:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def _by_trials(found: Findings) -> tuple[list[str], list[Section]]:
    try:
        result = analyse_trials(found.trials[found.trials["model"] != found.again])
    except InputError as error:
        return [f"With trials as subjects nothing can be computed: {error}"], []
    row = result.anova.set_index("effect").loc["condition:model"]
    sentence = (
        f"With trials as subjects, as in the paper: condition x model F({row['df_effect']}, {row['df_error']}) = "
        f"{row['f']:.3f}, partial eta squared {row['eta2_p']:.3f} over {result.n} trials ({result.left_out} left out). This "
        "covers sampling noise alone and says nothing about other vignettes."
    )
    text = "Subjects are trials; intervals and tests cover the draws of fixed models at fixed texts."
    return [sentence], [
        Section(
            "trial_effects", "Trials as subjects: effects", text, result.effects, intervals={"delta": ("low", "high")}
        ),
        Section("trial_anova", "Trials as subjects: analysis of variance", text, result.anova),
    ]


def _agreed(found: Findings) -> tuple[list[str], list[Section]]:
    table = agreement(found.trials, found.scores)
    said = ", ".join(f"{row.model} {row.r_texts:.2f}" for row in table.itertuples())
    differences = ", ".join(f"{row.model} {row.r_items:.2f}" for row in table.itertuples())
    sentence = f"The two scorers correlate over texts by r = {said}; over the items' differences by r = {differences}."
    return [sentence], [Section("agreement", "Agreement of the two scorers", table=table)]


def _swept(found: Findings) -> tuple[list[str], list[Section]]:
    if found.swept is None:
        return [], []
    effects, apart = patch_effects(found.swept, found.least), difference(found.swept)
    told = apart.excludes(0) and abs(apart.value) >= found.least
    said = [
        f"Sweep by expected value over {apart.n} pairs: tuned minus base is {apart.value:+.3f} [{apart.low:+.3f}, "
        f"{apart.high:+.3f}], "
        + ("of which patches bring back shares." if told else "too little to speak of shares of it.")
    ]
    beyond = effects[effects["p_holm"] < ALPHA]
    sentence = (
        f"{len(beyond)} of {len(effects)} patches move Delta_Knobe otherwise than a step of the same size in random "
        f"dimensions (Holm over {len(effects)}, {ALPHA:g})"
    )
    if len(beyond):
        top = max(beyond.to_dict("records"), key=lambda row: abs(row["net"]))
        sentence += (
            f"; the largest net of it: {top['site']} after block {top['layer']}, {NAMES[top['direction']]}, "
            f"{top['net']:+.3f} [{top['net_low']:+.3f}, {top['net_high']:+.3f}]"
        )
    said.append(sentence + ("." if len(beyond) else _none_told(effects, apart.n)))
    text = (
        "change: Delta_Knobe under the patch minus the recipient's own; control: the same under the donor's step in shuffled "
        "dimensions; net: their difference. After the last block resid_post gives the donor's answer up to the final norm "
        "and head, by construction."
    )
    intervals = {"change": ("change_low", "change_high"), "net": ("net_low", "net_high")}
    label = effects["site"] + " " + effects["layer"].astype(str) + ", " + effects["direction"].map(NAMES)
    table = effects.assign(patch=label)[["patch", *effects.columns]].drop(columns=["direction", "site", "layer"])
    sections = [Section("sweep", "Patches, one block and site at a time", text, table, intervals=intervals)]
    for site in effects["site"].unique():
        count = int((beyond["site"] == site).sum())
        finding = f"{site}: {count} of {int((effects['site'] == site).sum())} patches differ from their control"
        sections.append(Section(f"sweep_{site}", f"Sweep of {site}", picture=sweep_picture(effects, site, finding)))
    return said, sections


def _none_told(effects: pd.DataFrame, items: int) -> str:
    """How a count of no patches goes on: the smallest p, and whether any could have passed."""
    attainable = max(2.0 ** (1 - items), 1 / (PERMUTATIONS + 1)) * len(effects)
    sentence = f": none can be told from its control (smallest p {effects['p'].min():.3g})."
    if attainable >= ALPHA:
        sentence += (
            f" With {items} pairs and {len(effects)} patches none could have been: ask more pairs or patch fewer."
        )
    return sentence
