"""The statistics of the Layer-Patching paper: analysis of variance with the trial as subject (arXiv 2510.12229).

A subject is one trial: its ratings are averaged over all vignettes of a condition, and its cells are condition x model
(2 x k, all within the subject). F, partial eta squared = F df1 / (F df1 + df2), paired t-tests with Holm's correction
and d_z follow. Trials are draws from fixed models at fixed texts: more of them make any difference significant, and
none of this says that an effect holds for other vignettes. `plugins.knobe` with items as units does.

Does nothing where no trial has a readable answer in every cell.

    found = analyse_trials(ratings)  # trial, item, condition, model, rating
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from harness.errors import InputError
from plugins.knobe import anova, effects


@dataclass(frozen=True)
class TrialAnalysis:
    """What trials as subjects say.

    Attributes:
        n: trials used.
        left_out: trials without a readable answer in some cell, left out for all models.
        anova: see `plugins.knobe.anova`; its error is sampling noise alone.
        effects: see `plugins.knobe.effects`; intervals cover the draw of trials alone.
    """

    n: int
    left_out: int
    anova: pd.DataFrame
    effects: pd.DataFrame


def by_trial(trials: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Ratings averaged over vignettes: item (the trial's number), condition, model, rating; and trials left out."""
    means = trials.groupby(["trial", "condition", "model"], sort=False)["rating"].mean().reset_index()
    missing = set(means.loc[means["rating"].isna(), "trial"])
    kept = means[~means["trial"].isin(missing)].rename(columns={"trial": "item"}).reset_index(drop=True)
    return kept, len(missing)


def analyse_trials(trials: pd.DataFrame, seed: int = 0) -> TrialAnalysis:
    """2 x k repeated-measures analysis of variance and paired tests with the trial as subject.

    Args:
        trials: columns trial, condition, model, rating (NaN where no answer could be read): any number of rows a cell.

    Raises:
        InputError: a column is missing, or fewer than two trials have a readable answer in every cell.
    """
    wanted = ("trial", "condition", "model", "rating")
    if lacking := [name for name in wanted if name not in trials.columns]:
        raise InputError(f"The trials lack columns: {', '.join(lacking)}; expected {', '.join(wanted)}.")
    kept, left_out = by_trial(trials)
    subjects = kept["item"].nunique()
    if subjects < 2:
        raise InputError(
            f"{subjects} of {subjects + left_out} trials have a readable answer in every cell; at least 2 are needed. Ask "
            "more trials, or read the expected values, which are never missing."
        )
    return TrialAnalysis(subjects, left_out, anova(kept), effects(kept, seed))
