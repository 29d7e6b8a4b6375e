"""How vignettes are asked and read, the statistics with trials as subjects, and a user's file of single vignettes."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import tiny as t

from harness.engines import Settings
from harness.engines.torch import TorchEngine
from harness.engines.vllm_scoring import whole_steps
from harness.errors import InputError
from plugins.knobe_originals import load_originals
from plugins.knobe_ratings import (
    SEEDS,
    agreement,
    answer_scores,
    by_item,
    candidates,
    expectation,
    expected,
    first_rating,
    parse_rates,
    prompts_of,
    rate,
    temperatures,
)
from plugins.knobe_trials import analyse_trials
from plugins.knobe_vignettes import Vignette

VIGNETTES = [
    Vignette(id=f"v{n}", harm=f"{w} hurts", help=f"{w} helps", agent="x", question="q?") for n, w in enumerate("ab")
]
PUBLISHED_F, PUBLISHED_ETA, PUBLISHED_TRIALS = 283.574, 0.501, 283


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        (" 7", 7),
        ("10", 10),
        (" 0 (not at all)", 0),
        ("I say 7 out of 10", 7),
        ("8/10", 8),
        ("7.", 7),
        ("It is 11, no, 9", 9),
        ("100", None),
        ("7.5", None),
        ("7,5 or 6", 6),
        ("-3", None),
        ("seven", None),
        ("", None),
        ("5-6", 5),
        ("(4)", 4),
    ],
)
def test_first_rating(text, rating):
    found = first_rating(text)
    assert math.isnan(found) if rating is None else found == rating


def test_temperatures_are_those_of_the_seed():
    drawn = temperatures(200, 3)
    assert drawn.min() >= 0.85 and drawn.max() <= 1.15 and np.ptp(drawn) > 0.25
    assert np.array_equal(drawn[:50], temperatures(50, 3)) and not np.array_equal(drawn, temperatures(200, 4))


class Scripted:
    """Records what is asked; answers with the prompt's place, and with equal scores but for one candidate."""

    def __init__(self) -> None:
        self.tokenizer, self.calls = t.tokenizer(), []

    def generate(self, prompts, max_tokens, stop, temperature=0.0, seed=0):
        self.calls.append((len(prompts), max_tokens, stop, temperature, seed))
        return [f" {place}" if place else "none" for place in range(len(prompts))]

    def score_choices(self, requests):
        """A blank is sure, 4 has .5, other digits .05, and after 1 a 0 is sure."""
        four, begun = self.tokenizer("4")["input_ids"][0], self.tokenizer("Answer: 1")["input_ids"][-2:]
        sure = [len(choices) == 1 or context[-2:] == begun for context, choices in requests]
        return [
            [0.0 if certain else math.log(0.5 if token == four else 0.05) for token in choices]
            for certain, (_, choices) in zip(sure, requests, strict=True)
        ]


def test_a_trial_is_one_call_with_a_temperature_and_seeds_of_its_own():
    engine = Scripted()
    table = rate(engine, VIGNETTES, trials=3, seed=2)
    assert [call[:3] for call in engine.calls] == [(4, 10, [])] * 3
    assert [call[3] for call in engine.calls] == temperatures(3, 2).tolist()
    assert [call[4] for call in engine.calls] == [
        2 * SEEDS,
        2 * SEEDS + 4,
        2 * SEEDS + 8,
    ]  # no prompt's seed comes twice
    first = table[table["trial"] == 0]
    assert first["item"].tolist() == ["v0", "v0", "v1", "v1"] and first["condition"].tolist() == ["harm", "help"] * 2
    assert first["rating"].tolist()[1:] == [1, 2, 3] and math.isnan(first["rating"].iloc[0])
    with pytest.raises(InputError, match="0 trials of 2 vignettes"):
        rate(engine, VIGNETTES, trials=0)


def test_expected_ratings_by_hand():
    """P(4) = .5 and ten others .05: the mass is 1, the mean .05 * (55 - 4) + .5 * 4 = 4.55; 10 is `1` and `0` to this
    tokenizer, so its .05 stand within P(1) and are not counted again."""
    table = expected(Scripted(), VIGNETTES)
    assert table["rating"].tolist() == pytest.approx([4.55] * 4) and table["mass"].tolist() == pytest.approx([0.95] * 4)
    values, masses = expectation(np.log([[0.2, *[1e-12] * 9, 0.2], [*[1e-12] * 7, 0.1, *[1e-12] * 3]]))
    assert values.tolist() == pytest.approx([5, 7], abs=1e-9) and masses.tolist() == pytest.approx([0.4, 0.1])


def test_answers_token_by_token_are_continuations():
    model = t.build("llama", max_position_embeddings=256)
    engine = TorchEngine(model, t.tokenizer(), Settings(max_length=256))
    asked = [candidates(engine.tokenizer, v.prompt("harm")) for v in VIGNETTES]
    whole = engine.score_continuations([(one.prompt, answer) for one in asked for answer in one.answers])
    wanted = np.array([score for score, _ in whole]).reshape(2, 11)
    assert answer_scores(engine, asked) == pytest.approx(wanted, abs=1e-4)


def test_candidates_follow_the_prompt():
    tokenizer = t.tokenizer()
    one = candidates(tokenizer, "Answer:")
    assert [tokenizer.decode(answer) for answer in one.answers] == [f" {k}" for k in range(11)]
    assert one.nested and one.prompt == tokenizer("Answer:")["input_ids"]
    with pytest.raises(InputError, match="tokens of their own after 'Answer:'"):
        candidates(lambda text: {"input_ids": [len(text)]}, "Answer:")  # type: ignore[arg-type]


def test_a_tiny_model_is_asked():
    model = t.build("llama", max_position_embeddings=256)
    engine = TorchEngine(model, t.tokenizer(), Settings(max_length=256))
    once, again = (rate(engine, VIGNETTES, 2, seed) for seed in (0, 0))
    other = rate(engine, VIGNETTES, 2, 1)
    pd.testing.assert_frame_equal(once, again)
    assert once["answer"].tolist() != other["answer"].tolist()
    table = expected(engine, VIGNETTES)
    assert table["rating"].between(0, 10).all() and table["mass"].between(0, 1).all()
    assert prompts_of(engine.tokenizer, VIGNETTES)[1] == engine.tokenizer(VIGNETTES[0].prompt("help"))["input_ids"]


def trials(cube: np.ndarray) -> pd.DataFrame:
    """[trial, condition, model] -> two items a cell, half a point above and below it."""
    rows = [
        (trial, item, ("harm", "help")[condition], f"m{model}", value + (0.5 if item == "a" else -0.5))
        for (trial, condition, model), value in np.ndenumerate(cube)
        for item in "ab"
    ]
    return pd.DataFrame(rows, columns=["trial", "item", "condition", "model", "rating"])


def test_parse_rates_and_missing_cells():
    table = trials(np.arange(8.0).reshape(2, 2, 2))
    table.loc[(table["model"] == "m1") & (table["item"] == "b") & (table["condition"] == "harm"), "rating"] = np.nan
    rates = parse_rates(table).set_index(["model", "condition"])
    assert rates.loc[("m1", "harm")].tolist() == [4, 2, 0.5] and rates.loc[("m0", "help")].tolist() == [4, 4, 1]
    cells, left_out = by_item(table)
    assert left_out == ["b"] and set(cells["item"]) == {"a"} and len(cells) == 4
    # harm of m0 in trials 0 and 1 is 0 and 4, plus a half
    assert cells.set_index(["condition", "model"]).loc[("harm", "m0"), "rating"] == pytest.approx(2.5)


def test_agreement_by_hand():
    """Sampled means and expected values lie on a line for m0, and on one of the other slope for m1."""
    table = trials(np.random.default_rng(0).uniform(2, 8, (3, 2, 2)))
    table.loc[table["item"] == "b", "rating"] += np.where(table.loc[table["item"] == "b", "condition"] == "harm", 2, 0)
    third = table[table["item"] == "a"].assign(item="c", rating=lambda x: x["rating"] * 1.1)
    table = pd.concat([table, third])
    scores = table.groupby(["item", "condition", "model"])["rating"].mean().reset_index()
    scores["rating"] = np.where(scores["model"] == "m0", 1 + 0.5 * scores["rating"], 9 - scores["rating"])
    found = agreement(table, scores).set_index("model")
    assert found["r_texts"].tolist() == pytest.approx([1, -1]) and found["r_items"].tolist() == pytest.approx([1, -1])
    assert found["texts"].tolist() == [6, 6] and found["items"].tolist() == [3, 3]


def test_trials_as_subjects_against_statsmodels_and_by_sums_of_squares():
    from statsmodels.stats.anova import AnovaRM

    cube = np.random.default_rng(1).normal(5, 1, (20, 2, 3))
    found = analyse_trials(trials(cube)).anova.set_index("effect")
    subjects, conditions, models = np.indices(cube.shape).reshape(3, -1)
    table = pd.DataFrame({"s": subjects, "c": conditions, "m": models, "y": cube.ravel()})
    fitted = AnovaRM(table, "y", "s", ["c", "m"]).fit().anova_table
    assert found["f"].tolist() == pytest.approx(fitted["F Value"].tolist(), abs=1e-6)
    assert found["df_error"].tolist() == [19, 38, 38]
    interaction = cube - cube.mean(1, keepdims=True) - cube.mean(2, keepdims=True) + cube.mean((1, 2), keepdims=True)
    mean = interaction.mean(0)
    f = (20 * (mean**2).sum() / 2) / (((interaction - mean) ** 2).sum() / 38)
    assert found.loc["condition:model", "f"] == pytest.approx(f, abs=1e-6)


def test_the_published_interaction_has_the_published_eta():
    """283 trials, 2 x 3; the interaction is scaled until its F is the paper's."""
    cube = np.random.default_rng(2).normal(5, 1, (PUBLISHED_TRIALS, 2, 3))
    effect = np.outer([1, -1], [1, 0, -1])
    cube -= (cube.mean(0) - cube.mean((0, 1)) - cube.mean((0, 2))[:, None] + cube.mean())[None]
    own = cube - cube.mean(1, keepdims=True) - cube.mean(2, keepdims=True) + cube.mean((1, 2), keepdims=True)
    error = (own**2).sum() / 564
    size = math.sqrt(PUBLISHED_F * 2 * error / (PUBLISHED_TRIALS * (effect**2).sum()))
    row = analyse_trials(trials(cube + size * effect)).anova.set_index("effect").loc["condition:model"]
    assert (row["df_effect"], row["df_error"]) == (2, 564)
    assert row["f"] == pytest.approx(PUBLISHED_F, abs=1e-6)
    assert row["eta2_p"] == pytest.approx(PUBLISHED_ETA, abs=5e-4)
    assert row["eta2_p"] == pytest.approx(row["f"] * 2 / (row["f"] * 2 + 564))


def test_paired_tests_over_trials_by_hand():
    """m0 differs by 1, 0, 2 over trials: mean 1, sd 1, t = sqrt 3; m1 by 1, 2, 3: t = sqrt 12, twice its p by Holm."""
    cube = np.array([[[5, 6], [4, 5]], [[4, 7], [4, 5]], [[6, 8], [4, 5]]], dtype=float)
    found = analyse_trials(trials(cube))
    table = found.effects.set_index("model")
    assert (found.n, found.left_out) == (3, 0)
    assert table["t"].tolist() == pytest.approx([math.sqrt(3), math.sqrt(12)])
    assert table["d_z"].tolist() == pytest.approx([1, 2])
    assert table.loc["m1", "p_holm"] == pytest.approx(2 * (1 - math.sqrt(12 / 14)))


def test_unreadable_trials_are_left_out_and_counted():
    table = trials(np.random.default_rng(3).normal(5, 1, (4, 2, 2)))
    table.loc[(table["trial"] == 2) & (table["model"] == "m1") & (table["condition"] == "help"), "rating"] = np.nan
    found = analyse_trials(table)
    assert (found.n, found.left_out) == (3, 1)
    with pytest.raises(InputError, match="1 of 4 trials have a readable answer"):
        analyse_trials(table.assign(rating=table["rating"].where(table["trial"] == 0)))
    with pytest.raises(InputError, match="lack columns: trial"):
        analyse_trials(table.drop(columns="trial"))


def single(text: str, condition: str, **more: str) -> dict[str, str]:
    return {"text": text, "question": "How far?", "condition": condition, **more}


ROWS = [single("It hurts.", "harm"), single("It, now, helps.", "help"), single("Good.", "help"), single("Bad.", "harm")]


def written(folder, rows, csv=False):
    path = folder / ("own.csv" if csv else "own.jsonl")
    if csv:
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize("csv", [True, False])
def test_single_vignettes_become_pairs_in_order(tmp_path, csv):
    first, second = load_originals(written(tmp_path, ROWS, csv))
    assert (first.id, second.id) == ("pair-001", "pair-002")
    assert first.prompt("help").startswith("It, now, helps.\n\nHow far? ") and second.harm.text == "Bad."
    assert second.prompt("harm").endswith("\nAnswer:")


@pytest.mark.parametrize("csv", [True, False])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:3], "holds 3 vignettes, an odd number"),
        ([ROWS[0], ROWS[3], ROWS[1], ROWS[2]], r"lines \d and \d are pair 1 and both have condition 'harm'"),
        ([*ROWS, single("Bad.", "harm"), single("x", "help")], r"line \d: this vignette stands on line \d too"),
        ([single("a", "harms"), single("b", "help")], r"line \d: `condition`.*'harm' or 'help'.*'harms'"),
        ([single(" ", "harm"), single("b", "help")], r"line \d: `text`"),
    ],
)
def test_files_that_are_no_pairs(tmp_path, csv, rows, message):
    with pytest.raises(InputError, match=message):
        load_originals(written(tmp_path, rows, csv))


def test_columns_are_checked(tmp_path):
    with pytest.raises(InputError, match="columns \\['text', 'condition'\\]; expected a CSV with the columns text, q"):
        load_originals(written(tmp_path, [{"text": "a", "condition": "harm"}], csv=True))
    with pytest.raises(InputError, match="line 1: unknown key `extra`"):
        load_originals(written(tmp_path, [single("a", "harm", extra="x")]))
    with pytest.raises(InputError, match="There is no file"):
        load_originals(tmp_path / "none.csv")
    (tmp_path / "short.csv").write_text("text,question,condition\na,b\n")
    with pytest.raises(InputError, match=r"short\.csv line 2 has not as many fields"):
        load_originals(tmp_path / "short.csv")
    (tmp_path / "empty.csv").write_text("text,question,condition\n")
    with pytest.raises(InputError, match="holds no vignettes"):
        load_originals(tmp_path / "empty.csv")


def test_sampled_prompts_are_computed_in_whole_steps():
    """vLLM on a CPU cannot draw for a prompt that one step computes in part; prompts of 3, 3, 5, 9 and 1 tokens."""
    prompts = [[0] * size for size in (3, 3, 5, 9, 1)]
    assert [prompts[part] for part in whole_steps(prompts, 8)] == [
        prompts[:2],
        [prompts[2]],
        [prompts[3]],
        [prompts[4]],
    ]
    assert [len(prompts[part]) for part in whole_steps(prompts, 100)] == [5]
    assert [part.stop - part.start for part in whole_steps([[0]] * 130, 1000)] == [64, 64, 2]
