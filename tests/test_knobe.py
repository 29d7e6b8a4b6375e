"""The vignettes, the statistics of their ratings worked out by hand, and the sweep over layers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.errors import InputError
from plugins.knobe import analyse, anova, changes, effects
from plugins.knobe_vignettes import WIDEST, Vignette, load_vignettes
from plugins.layer_patching import Direction, recovery, sweep

Table = Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
# Words that would tell in both texts which way the effect goes.
NOT_SAID = {"warned", "unfortunately", "sadly", "luckily", "fortunately"}
# item -> (harm, help), each of them (base, tuned)
HAND: Table = {"a": ((5, 9), (4, 4)), "b": ((4, 8), (4, 2)), "c": ((6, 9), (4, 3))}


def rows(table: Table, models: tuple[str, ...]) -> pd.DataFrame:
    found = [
        (item, condition, model, value)
        for item, both in table.items()
        for condition, values in zip(("harm", "help"), both, strict=True)
        for model, value in zip(models, values, strict=True)
    ]
    return pd.DataFrame(found, columns=["item", "condition", "model", "rating"])


@pytest.fixture
def ratings() -> pd.DataFrame:
    return rows(HAND, ("base", "tuned"))


def check(row: pd.Series, ss: float, df1: int, ss_error: float, df2: int) -> None:
    f = ss / df1 / (ss_error / df2)
    wanted = [ss, df1, ss_error, df2, f, f * df1 / (f * df1 + df2)]
    columns = ["ss_effect", "df_effect", "ss_error", "df_error", "f", "eta2_p"]
    assert [float(row[name]) for name in columns] == pytest.approx(wanted, abs=1e-6)


def test_anova_within_items_by_hand(ratings: pd.DataFrame) -> None:
    """Per item a, b, c: harm - help 3, 3, 4; tuned - base 2, 1, 1; difference of differences 4, 6, 4.

    With two levels each SS is 3 (mean contrast)^2 / norm: condition 3 (10/3)^2 = 100/3, model 3 (4/3)^2 = 16/3,
    interaction 3 (14/3)^2 / 4 = 49/3; their errors are the contrasts' squares about the mean: 6/9, 6/9, 24/9/4: all
    2/3 on 2 degrees of freedom, so F = 100, 16, 49.
    """
    table = anova(ratings).set_index("effect")
    assert list(table.index) == ["condition", "model", "condition:model"]
    check(table.loc["condition"], 100 / 3, 1, 2 / 3, 2)
    check(table.loc["model"], 16 / 3, 1, 2 / 3, 2)
    check(table.loc["condition:model"], 49 / 3, 1, 2 / 3, 2)
    assert table["f"].tolist() == pytest.approx([100, 16, 49], abs=1e-6)
    # F(1, 2) is t(2) squared, and P(|t| > x) of two degrees of freedom is 1 - x / sqrt(x^2 + 2).
    by_hand = [1 - t / math.sqrt(t * t + 2) for t in (10, 4, 7)]
    assert table["p"].tolist() == pytest.approx(by_hand, abs=1e-6)
    assert table["epsilon"].tolist() == pytest.approx([1, 1, 1])
    assert table["p_gg"].tolist() == pytest.approx(by_hand, abs=1e-6)


def test_anova_within_models_by_hand(ratings: pd.DataFrame) -> None:
    """Condition: models differ by 1 and 17/3, so its error is 3/2 * 2 (7/3)^2 = 49/3; item SS 8/3 against the 2/3 of
    item x model; condition x item 2/3 against the 2/3 that is left. Two units leave epsilon at its floor, 1/2."""
    table = anova(ratings, unit="model").set_index("effect")
    check(table.loc["condition"], 100 / 3, 1, 49 / 3, 1)
    check(table.loc["item"], 8 / 3, 2, 2 / 3, 2)
    check(table.loc["condition:item"], 2 / 3, 2, 2 / 3, 2)
    assert table["f"].tolist() == pytest.approx([100 / 49, 4, 1], abs=1e-6)
    assert table.loc["item", "p"] == pytest.approx(1 / (1 + 4), abs=1e-6)  # F(2, 2): 1 / (1 + F)
    assert table.loc["item", "epsilon"] == pytest.approx(0.5)
    assert table.loc["item", "p_gg"] == pytest.approx(1 - 2 / math.pi * math.atan(2), abs=1e-6)  # F(1, 1)


def test_epsilon_of_three_models_by_hand() -> None:
    """Model means per item, centred within it: (2,-1,-1), (-2,1,1), (0,1,-1), (0,-1,1), which average to zero. Their
    products sum to [[8,-4,-4],[-4,4,0],[-4,0,4]]: trace 16, squares 160, epsilon = 256 / (2 * 160) = 0.8."""
    centred = {"a": (2, -1, -1), "b": (-2, 1, 1), "c": (0, 1, -1), "d": (0, -1, 1)}
    table = {item: (tuple(5 + x for x in means),) * 2 for item, means in centred.items()}
    table["a"] = (tuple(x + 1 for x in table["a"][0]), table["a"][1])  # lets harm and help differ; centring drops it
    row = anova(rows(table, ("x", "y", "z"))).set_index("effect").loc["model"]
    assert (row["epsilon"], row["df_effect"], row["df_error"]) == (pytest.approx(0.8), 2, 6)


def test_one_model_has_the_condition_alone(ratings: pd.DataFrame) -> None:
    one = ratings[ratings["model"] == "tuned"]
    table = anova(one)
    assert table["effect"].tolist() == ["condition"]
    assert table.loc[0, "f"] == pytest.approx(17**2, abs=1e-6)  # t squared, see below
    with pytest.raises(InputError, match=r"at least 2 models are needed, came 1 \('tuned'\)"):
        anova(one, unit="model")


def test_eta_squared_from_squares_is_that_from_f() -> None:
    """The columns come from two places, our sums of squares and the fitted F; F df1 / (F df1 + df2) ties them."""
    many = np.random.default_rng(0).normal(5, 2, (20, 2, 3))
    table = {str(i): (tuple(harm), tuple(other)) for i, (harm, other) in enumerate(many)}
    found = anova(rows(table, ("x", "y", "z")))
    weighted = found["f"] * found["df_effect"]
    assert found["eta2_p"].tolist() == pytest.approx((weighted / (weighted + found["df_error"])).tolist())
    assert found["df_error"].tolist() == [19, 38, 38]


def test_paired_tests_holm_and_effect_sizes_by_hand() -> None:
    """Differences of base 1, 0, 2: mean 1, sd 1, t = sqrt 3; of tuned 5, 6, 6: mean 17/3, sd sqrt(1/3), t = 17; of
    other 1, 2, 3: mean 2, sd 1, t = sqrt 12. Holm: three times the smallest p, twice the next, once the largest."""
    three = {item: ((*both[0], 5 + n), (*both[1], 4)) for n, (item, both) in enumerate(HAND.items())}
    table = effects(rows(three, ("base", "tuned", "other"))).set_index("model")
    assert table["delta"].tolist() == pytest.approx([1, 17 / 3, 2])
    assert table.loc["tuned", ["harm", "help"]].tolist() == pytest.approx([26 / 3, 3])
    assert table["t"].tolist() == pytest.approx([math.sqrt(3), 17, math.sqrt(12)])
    assert table["d_z"].tolist() == pytest.approx([1, 17 / math.sqrt(3), 2])
    assert table["df"].tolist() == [2, 2, 2] and table["n"].tolist() == [3, 3, 3]
    base, tuned, other = 1 - math.sqrt(3 / 5), 1 - 17 / math.sqrt(291), 1 - math.sqrt(12 / 14)
    assert table["p"].tolist() == pytest.approx([base, tuned, other])
    assert table["p_holm"].tolist() == pytest.approx([base, 3 * tuned, 2 * other])


def test_a_constant_effect_has_no_width_and_no_test() -> None:
    flat = rows({item: ((0.3 + n, 7.0), (0.1 + n, 7.0)) for n, item in enumerate("abcd")}, ("shifted", "equal"))
    table = effects(flat).set_index("model")
    shifted = table.loc["shifted", ["delta", "low", "high"]].tolist()
    assert shifted == pytest.approx([0.2, 0.2, 0.2])
    assert table.loc["equal", ["delta", "low", "high"]].tolist() == [0, 0, 0]
    assert table[["t", "p", "p_holm", "d_z"]].isna().all(axis=None)
    row = anova(flat).set_index("effect").loc["condition"]
    assert row["ss_effect"] == pytest.approx(4 * 2 * 2 * 0.05**2) and math.isnan(row["f"])


def test_a_constant_model_is_no_test_in_the_correction() -> None:
    table = {item: ((*both[0], 5), (*both[1], 5)) for item, both in HAND.items()}
    found = effects(rows(table, ("base", "tuned", "flat"))).set_index("model")
    assert math.isnan(found.loc["flat", "p_holm"])
    assert found.loc["tuned", "p_holm"] == pytest.approx(2 * found.loc["tuned", "p"])


def test_a_change_is_paired_by_item() -> None:
    """Each model's effect varies over items by itself; tuned adds exactly 1.5 to the harm of every item."""
    draw = np.random.default_rng(1).normal(5, 2, (15, 2))
    table = {str(i): ((harm, harm + 1.5), (other, other)) for i, (harm, other) in enumerate(draw)}
    both = rows(table, ("base", "tuned"))
    alone = effects(both)
    assert (alone["low"] < alone["delta"]).all() and (alone["delta"] < alone["high"]).all()
    assert (alone["high"] - alone["low"] > 0.5).all()
    found = changes(both, "base")
    assert found["model"].tolist() == ["tuned"]
    assert found.loc[0, ["change", "low", "high"]].tolist() == pytest.approx([1.5, 1.5, 1.5])


def test_the_interval_is_the_bootstrap_of_items(ratings: pd.DataFrame) -> None:
    """Of the means of three draws from 1, 0, 2 one in 27 is 0 and one is 2: more than 2.5%, so it ends there."""
    base = effects(ratings).set_index("model").loc["base"]
    assert (base["low"], base["high"]) == (0, 2)


def test_analysis_does_not_depend_on_the_order_of_rows() -> None:
    many = np.random.default_rng(2).normal(5, 2, (12, 2, 2))
    ratings = rows({str(i): (tuple(harm), tuple(other)) for i, (harm, other) in enumerate(many)}, ("base", "tuned"))
    found = analyse(ratings, reference="base")
    mixed = analyse(ratings.sample(frac=1, random_state=0), reference="base")
    assert (found.unit, found.n) == ("item", 12) and found.changes is not None and mixed.changes is not None
    deltas = found.effects.set_index("model")["delta"]
    assert found.changes.loc[0, "change"] == pytest.approx(deltas["tuned"] - deltas["base"])
    pd.testing.assert_frame_equal(found.anova, mixed.anova)
    pd.testing.assert_frame_equal(found.changes, mixed.changes)
    pd.testing.assert_frame_equal(found.effects, mixed.effects.set_index("model").loc[["base", "tuned"]].reset_index())
    assert analyse(ratings).changes is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.drop(index=5), "1 cell .item 'b', condition 'harm', model 'tuned'. without a rating, of 12"),
        (lambda r: r.assign(rating=r["rating"].where(r.index != 7)), "item 'b', condition 'help', model 'tuned'"),
        (lambda r: r.assign(rating=r["rating"].astype(object).where(r.index != 0, "six")), "1 cell .item 'a', .*base"),
        (lambda r: pd.concat([r, r.iloc[[8]]]), "item 'c', condition 'harm', model 'base'. rated more than once"),
        (lambda r: r.replace({"condition": {"help": "helps"}}), "Unknown conditions.* 'helps'; expected harm, help"),
        (lambda r: r[r["item"] == "a"], "At least 2 items .*came 1 .'a'"),
        (lambda r: r.iloc[:0], "At least 2 items .*came none"),
        (lambda r: r[r["condition"] == "harm"], "6 cells .*; and 1 more. without a rating"),
        (lambda r: r.drop(columns="model"), "lack columns: model; expected item, condition, model, rating"),
        (lambda r: r.assign(item=r["item"].where(r.index != 2)), "no label in: item"),
    ],
)
def test_what_ratings_lack_is_named(
    ratings: pd.DataFrame, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    broken = change(ratings)
    for function in (anova, effects):
        with pytest.raises(InputError, match=message):
            function(broken)


def test_unknown_units_and_references_are_refused(ratings: pd.DataFrame) -> None:
    with pytest.raises(InputError, match=r"'trial'.*item, model"):
        anova(ratings, unit="trial")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'bass'; rated models: base, tuned"):
        changes(ratings, "bass")


def test_packaged_vignettes_are_minimal_pairs() -> None:
    vignettes = load_vignettes()
    assert len(vignettes) >= 44
    assert len({v.id for v in vignettes}) == len({v.harm for v in vignettes}) == len({v.agent for v in vignettes})
    for v in vignettes:
        harm, other = v.harm.split(), v.help.split()
        assert len(harm) == len(other) and 45 <= len(harm) <= 90, v.id
        differing = {n for n, (a, b) in enumerate(zip(harm, other, strict=True)) if a != b}
        assert 1 <= len(differing) <= 2 and v.span <= 0.04, v.id


def test_packaged_questions_do_not_give_the_valence_away() -> None:
    for v in load_vignettes():
        harm, other = v.harm.split(), v.help.split()
        changed = {w.strip(".,") for pair in zip(harm, other, strict=True) if pair[0] != pair[1] for w in pair}
        asked = set(v.question.rstrip("?").split())
        assert not changed & asked, v.id
        assert v.agent in v.question and "intentionally" in asked and v.question.endswith("?"), v.id
        text = set(v.harm.lower().replace(",", "").replace(".", "").split())
        assert v.agent.split()[-1] in text and not text & NOT_SAID, v.id


def test_prompts_of_a_pair_differ_as_the_texts_do() -> None:
    v = Vignette(id="x", harm="It broke.", help="It held.", agent="it", question="How far?")
    assert v.prompt("harm").replace("broke", "held") == v.prompt("help")
    assert v.prompt("harm").startswith("It broke.\n\nHow far? ") and v.prompt("help").endswith("\nAnswer:")


def pair(name: str = "k1", harm: str = "the plan hurts it in the end", **more: str) -> dict[str, str]:
    other = {"help": "the plan helps it in the end", "agent": "the planner", "question": "How far?"}
    return {"id": name, "harm": harm, **other, **more}


def written(folder: Path, *lines: dict[str, str] | str) -> Path:
    path = folder / "own.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), encoding="utf-8")
    return path


def test_a_users_file_is_read(tmp_path: Path) -> None:
    found = load_vignettes(written(tmp_path, pair(), "", pair("k2")))
    assert [v.id for v in found] == ["k1", "k2"] and found[0].span == pytest.approx(1 / 7)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{broken", "own.jsonl line 2 is not JSON"),
        (pair("k2", colour="red"), "own.jsonl line 2: unknown key `colour` .known here: agent, harm, help, id, q"),
        ({"id": "k2", "harm": "a b", "help": "a c", "agent": "x"}, "own.jsonl line 2: `question`: Field required"),
        (pair("k2", agent="  "), "own.jsonl line 2: `agent`"),
        (pair("k1"), "own.jsonl line 2: id 'k1' stands on line 1 too"),
        (pair("k2", harm="the plan  helps it in the end"), "own.jsonl line 2: `harm` and `help` are the same text"),
        (pair("k2", harm="a wholly other text of seven words"), "1 of 2 pairs .*line 2 .'k2', 100%.*minimal=False"),
    ],
)
def test_file_errors_name_file_and_line(tmp_path: Path, second: dict[str, str] | str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_vignettes(written(tmp_path, pair(), second))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl"):
        load_vignettes(tmp_path / "none.jsonl")


def test_wide_pairs_load_when_asked_for(tmp_path: Path) -> None:
    wide = pair("k2", harm="a wholly other text of seven words")
    assert load_vignettes(written(tmp_path, wide), minimal=False)[0].span == 1


@pytest.mark.parametrize(
    ("harm", "other", "span"),
    [
        ("a b c d", "a x c d", 1 / 4),
        ("a b c d", "x b c y", 1),
        ("a b", "a b c", 1 / 3),  # a word more at the end
        ("a b", "a b b", 1 / 3),  # a word is not counted from both sides
        ("a b c d e f", "a x c y e f", 3 / 6),
    ],
)
def test_span_by_hand(harm: str, other: str, span: float) -> None:
    found = Vignette(id="x", harm=harm, help=other, agent="a", question="q").span
    assert found == pytest.approx(span) and (found <= WIDEST) == (span <= 1 / 3)


def test_sweep_by_hand() -> None:
    """Base 1, tuned 3. Into tuned: (2.5 - 3) / (1 - 3) = .25 and the base's own score, 1. Into base: (2 - 1) / 2 = .5,
    and one that goes the other way: (0 - 1) / 2 = -.5; the recipient's own score is 0."""
    scores: dict[tuple[int, str, Direction], float] = {
        (0, "mlp_out", "base_into_tuned"): 2.5,
        (4, "mlp_out", "base_into_tuned"): 1.0,
        (0, "resid_post", "base_into_tuned"): 3.0,
        (4, "resid_post", "base_into_tuned"): math.nan,
        (0, "mlp_out", "tuned_into_base"): 2.0,
        (4, "mlp_out", "tuned_into_base"): 0.0,
        (0, "resid_post", "tuned_into_base"): 1.0,
        (4, "resid_post", "tuned_into_base"): 3.0,
    }
    table = sweep(lambda *key: scores[key], (0, 4), ("mlp_out", "resid_post"), base=1, tuned=3)
    keys = list(table[["layer", "site", "direction"]].itertuples(index=False, name=None))
    assert keys == list(scores)
    assert table["recovery"].tolist() == pytest.approx([0.25, 1, 0, math.nan, 0.5, -0.5, 0, 1], nan_ok=True)
    assert table["patched"].tolist() == pytest.approx(list(scores.values()), nan_ok=True)
    assert set(table.loc[table["direction"] == "base_into_tuned", "recipient"]) == {3}
    assert set(table.loc[table["direction"] == "base_into_tuned", "donor"]) == {1}


def test_a_sweep_without_a_difference_is_refused_before_it_runs() -> None:
    def never(layer: int, site: str, direction: Direction) -> float:
        raise AssertionError("patched although there is nothing to recover")

    with pytest.raises(InputError, match=r"score 1 and 1\.04, which differ by 0\.04, less than 0\.05 \(`least`\)"):
        sweep(never, [0], ["mlp_out"], base=1.0, tuned=1.04)
    assert recovery(1.01, 1.0, 1.04, least=0.01) == pytest.approx(0.25)
    with pytest.raises(InputError, match="finite score"):
        sweep(never, [0], ["mlp_out"], base=math.nan, tuned=1.0)
    with pytest.raises(InputError, match="`least` is 0"):
        sweep(never, [0], ["mlp_out"], base=0.0, tuned=1.0, least=0)
    for layers, sites, message in (
        ([], ["mlp_out"], "`layers` is"),
        ([1, 1], ["mlp_out"], "`layers` is"),
        ([0], [], "`sites` is"),
        ([-1], ["mlp_out"], "came -1"),
    ):
        with pytest.raises(InputError, match=message):
            sweep(never, layers, sites, base=0.0, tuned=1.0)
