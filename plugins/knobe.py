"""The Knobe effect: is a harmful side effect called more intentional than a helpful one? (arXiv 2510.12229; Knobe 2003)

Every pair of vignettes differs in the side effect's valence alone and is one item; a rating says how intentional the
side effect was. Per model, with d_i = harm rating - help rating of item i:
Delta_Knobe = mean of d_i;  d_z = Delta_Knobe / standard deviation of d_i (n - 1);  t = d_z sqrt(n)
partial eta^2 = SS_effect / (SS_effect + SS_error) = F df1 / (F df1 + df2)

The unit of the analysis of variance is what repeats and what its errors vary over. `item` (the default): does the
effect hold for other vignettes of this kind? `model`: does it hold for other models? The paper's unit is the trial,
one draw of sampling noise, which says nothing about either; average trials into their cell before they come here.

Does nothing useful where ratings do not vary over units: no test has an error term there, so F, t, p and d_z are NaN.

    from plugins.knobe import analyse
    analyse(ratings, reference="base").effects  # ratings: item, condition, model, rating
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray as Array
from scipy import stats

from harness import statistics as st
from harness.characters import shown
from harness.errors import InputError, choices
from harness.statistics import Resampled, combine
from plugins.knobe_vignettes import Condition

Unit = Literal["item", "model"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
UNITS: tuple[Unit, ...] = get_args(Unit)
KEYS = ("item", "condition", "model")
EFFECTS = ["model", "harm", "help", "delta", "low", "high", "t", "df", "p", "p_holm", "d_z", "n"]
# Sums of squares this small beside the ratings' own are what rounding leaves of zero.
ROUNDING = 1e-20


@dataclass(frozen=True)
class Analysis:
    """What a table of ratings says; every value in the units of the ratings unless a column says otherwise.

    Attributes:
        unit: what repeats in `anova`.
        n: items.
        anova: see `anova`.
        effects: see `effects`.
        changes: see `changes`; None without a reference.
    """

    unit: Unit
    n: int
    anova: pd.DataFrame
    effects: pd.DataFrame
    changes: pd.DataFrame | None


def analyse(ratings: pd.DataFrame, unit: Unit = "item", reference: str | None = None, seed: int = 0) -> Analysis:
    """Everything below in one object.

    Args:
        ratings: columns item, condition (harm or help), model, rating: one row for every cell.
        reference: the model against which the others' effects are set, such as the base.

    Raises:
        InputError: as `anova` and `changes`.
    """
    against = None if reference is None else changes(ratings, reference, seed)
    return Analysis(unit, len(_cells(ratings)[1]), anova(ratings, unit), effects(ratings, seed), against)


def anova(ratings: pd.DataFrame, unit: Unit = "item") -> pd.DataFrame:
    """Repeated-measures analysis of variance, condition x model within items or condition x item within models.

    F and p are those of statsmodels' AnovaRM. Its p take sphericity for granted, which two levels always meet; `p_gg`
    shrinks both degrees of freedom by Greenhouse and Geisser's epsilon (1959) and is the one to quote for more levels.

    Returns:
        One row per effect: effect, ss_effect, df_effect, ss_error, df_error (squared rating units), f, p, eta2_p
        (partial, in [0, 1]), epsilon, p_gg. With a single model only `condition` can be tested within items.

    Raises:
        InputError: an unknown unit, fewer than two units, or as `_cells` says.
    """
    from statsmodels.stats.anova import AnovaRM

    if unit not in UNITS:
        raise InputError(f"There is no unit {shown(unit)} of analysis; expected one of {choices(UNITS)}.")
    cube, _, models = _cells(ratings)
    if unit == "model":
        cube = cube.transpose(2, 1, 0)
        if len(models) < 2:
            raise InputError(f"With models as units at least 2 models are needed, came 1 ({shown(models[0])}).")
    other = "model" if unit == "item" else "item"
    within = ["condition", other] if cube.shape[2] > 1 else ["condition"]
    units, conditions, others = np.indices(cube.shape).reshape(3, -1)
    table = pd.DataFrame({"unit": units, "condition": conditions, other: others, "rating": cube.ravel()})
    with np.errstate(divide="ignore", invalid="ignore"):
        fitted: Any = AnovaRM(table, "rating", "unit", within).fit().anova_table
    effects_of = {"condition": (1,), other: (2,), f"condition:{other}": (1, 2)}
    rows = [_effect(cube, name, axes, fitted.loc[name]) for name, axes in effects_of.items() if name in fitted.index]
    return pd.DataFrame(rows)


def _effect(cube: Float[Array, "u c k"], name: str, axes: tuple[int, ...], fitted: Any) -> dict[str, Any]:
    """One row of `anova`: sums of squares and epsilon from every unit's own deviations, F and p as fitted."""
    rest = tuple(axis for axis in (1, 2) if axis not in axes)
    scores = cube.mean(axis=rest, keepdims=True)
    for axis in axes:
        scores = scores - scores.mean(axis=axis, keepdims=True)
    cells = int(np.prod([cube.shape[axis] for axis in rest]))
    scores = scores.reshape(len(cube), -1)
    errors = scores - scores.mean(axis=0)
    ss_effect = cells * len(cube) * float(np.sum(scores.mean(axis=0) ** 2))
    ss_error = cells * float(np.sum(errors**2))
    df1, df2 = round(fitted["Num DF"]), round(fitted["Den DF"])
    found = {"effect": name, "ss_effect": ss_effect, "df_effect": df1, "ss_error": ss_error, "df_error": df2}
    if not _varies(ss_error, cube):
        return {**found, **dict.fromkeys(("f", "p", "eta2_p", "epsilon", "p_gg"), float("nan"))}
    covariance = errors.T @ errors
    epsilon = float(np.trace(covariance) ** 2 / (df1 * np.sum(covariance**2)))
    f = float(fitted["F Value"])
    return {
        **found,
        "f": f,
        "p": float(fitted["Pr > F"]),
        "eta2_p": ss_effect / (ss_effect + ss_error),
        "epsilon": epsilon,
        "p_gg": float(stats.f.sf(f, epsilon * df1, epsilon * df2)),
    }


def effects(ratings: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Delta_Knobe of every model: paired t-test over items, corrected over models by Holm, and item bootstrap.

    Returns:
        One row per model: model, harm, help (mean ratings), delta, low, high (95% interval of the item bootstrap), t,
        df, p, p_holm, d_z (standard deviations of the items' differences), n (items).

    Raises:
        InputError: as `_cells` says.
    """
    cube, items, models = _cells(ratings)
    n, rows = len(items), []
    for column, (model, delta) in enumerate(zip(models, _deltas(cube, seed), strict=True)):
        harm, other = cube[:, 0, column], cube[:, 1, column]
        e, t, p, d_z = delta.estimate(), float("nan"), float("nan"), float("nan")
        spread = float(np.std(harm - other, ddof=1))
        if _varies(spread**2, cube[:, :, column]):
            tested: Any = stats.ttest_rel(harm, other)
            t, p, d_z = float(tested.statistic), float(tested.pvalue), e.value / spread
        means = {"harm": float(harm.mean()), "help": float(other.mean())}
        interval = {"delta": e.value, "low": e.low, "high": e.high}
        rows.append({"model": model, **means, **interval, "t": t, "df": n - 1, "p": p, "d_z": d_z, "n": n})
    table = pd.DataFrame(rows)
    table["p_holm"] = st.corrected(table["p"].to_numpy(float))[0]
    return table[EFFECTS]


def changes(ratings: pd.DataFrame, reference: str, seed: int = 0) -> pd.DataFrame:
    """Delta_Knobe of every other model minus the reference's, on one resampling of the items for all models.

    Returns:
        One row per other model: model, reference, change, low, high (95% interval of the item bootstrap), n (items).

    Raises:
        InputError: the reference was not rated, or as `_cells` says.
    """
    cube, _, models = _cells(ratings)
    if reference not in models:
        raise InputError(f"There are no ratings of the reference {shown(reference)}; rated models: {choices(models)}.")
    deltas = dict(zip(models, _deltas(cube, seed), strict=True))
    base, rows = deltas.pop(reference), []
    for model, delta in deltas.items():
        e = combine(lambda a, b: a - b, delta, base).estimate()
        rows.append({"model": model, "reference": reference, "change": e.value, "low": e.low, "high": e.high, "n": e.n})
    return pd.DataFrame(rows, columns=["model", "reference", "change", "low", "high", "n"])


def _deltas(cube: Float[Array, "i 2 k"], seed: int) -> list[Resampled]:
    differences = (cube[:, 0] - cube[:, 1]).T
    draws = st.resampled_means(differences, seed)
    return [
        Resampled(float(row.mean()), draws[:, column], (st.leave_one_out(row),), len(row))
        for column, row in enumerate(differences)
    ]


def _varies(squares: float, values: Array) -> bool:
    return squares > ROUNDING * float(np.sum(values**2))


def _cells(ratings: pd.DataFrame) -> tuple[Float[Array, "i 2 k"], list[str], list[str]]:
    """Ratings as [item, condition (harm, help), model], items by name, models in the order of their first rows.

    Raises:
        InputError: a column, label or cell is missing, a cell stands twice, a condition is unknown, or there are fewer
            than two items; names what it is about.
    """
    if lacking := [name for name in (*KEYS, "rating") if name not in ratings.columns]:
        wanted = ", ".join((*KEYS, "rating"))
        raise InputError(
            f"The ratings lack columns: {choices(lacking)}; expected {wanted}, came {choices(ratings.columns)}."
        )
    if unlabelled := [name for name in KEYS if ratings[name].isna().any()]:
        raise InputError(f"Some ratings have no label in: {choices(unlabelled)}; every row needs {', '.join(KEYS)}.")
    keys = list(zip(*(ratings[name].astype(str) for name in KEYS), strict=True))
    if unknown := {condition for _, condition, _ in keys} - set(CONDITIONS):
        named = choices(shown(name) for name in unknown)
        raise InputError(f"Unknown conditions in the ratings: {named}; expected {choices(CONDITIONS)}.")
    items, models = sorted({key[0] for key in keys}), list(dict.fromkeys(key[2] for key in keys))
    if len(items) < 2:
        came = f"1 ({shown(items[0])})" if items else "none"
        raise InputError(f"At least 2 items are needed to tell an effect from chance, came {came}.")
    values = pd.to_numeric(ratings["rating"], errors="coerce").to_numpy(float)
    found: dict[tuple[str, str, str], float] = {}
    twice = []
    for key, value in zip(keys, values, strict=True):
        if key in found:
            twice.append(key)
        found[key] = value
    if twice:
        raise InputError(f"{_named(twice)} rated more than once; average the trials of a cell into one rating first.")
    wanted = list(product(items, CONDITIONS, models))
    if missing := [key for key in wanted if not np.isfinite(found.get(key, np.nan))]:
        raise InputError(
            f"{_named(missing)} without a rating, of {len(wanted)}; ask again, or leave the item out for all models."
        )
    cube = np.array([found[key] for key in wanted]).reshape(len(items), len(CONDITIONS), len(models))
    return cube, items, models


def _named(cells: Sequence[tuple[str, ...]]) -> str:
    """At most five cells in words, in the order of the ratings."""
    first = "; ".join(", ".join(f"{n} {shown(v)}" for n, v in zip(KEYS, c, strict=True)) for c in cells[:5])
    more = f"; and {len(cells) - 5} more" if len(cells) > 5 else ""
    return f"{len(cells)} cell{'s' * (len(cells) > 1)} ({first}{more})"
