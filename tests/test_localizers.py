"""Localisers side by side: identities, overlaps and effects by hand, parity with each method, and a study on a tiny model."""

from __future__ import annotations

import copy
import json
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny as t
import torch
import yaml
from scipy.stats import spearmanr

from harness.analysis import read_settings, read_yaml
from harness.contrast import Sequence
from harness.engines import lease
from harness.errors import InputError, ProofError
from harness.lmeval.roots import packaged_root
from harness.measure import prompt_ids
from harness.statistics import Estimate
from harness.topics import find_topics
from plugins.culnig import score
from plugins.culnig_items import stance_items
from plugins.dose_figure import picture
from plugins.dose_response import Dose, Responses, chance_band, effects, noise_floor
from plugins.localizer_overlap import agreement, chance, chance_within, layers, spearman_within, stability, top_set
from plugins.localizer_scores import NAMES, all_scores, some
from plugins.localizer_sheet import Found, sentences
from plugins.pnlac import localize
from plugins.studies.localizers import ANALYSIS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def topic():
    return some(find_topics([packaged_root()])["immigration"], 0, 1, 4)


@pytest.fixture(scope="module")
def base():
    return t.build("llama", max_position_embeddings=1024, num_hidden_layers=2)


# Scores


@pytest.fixture(scope="module")
def scored(base, topic):
    return all_scores(base, t.with_other_mlps(base), t.tokenizer(), [topic], "right", False)


def test_every_localiser_scores_every_neuron(scored):
    assert tuple(scored) == NAMES
    assert {tuple(one.shape) for one in scored.values()} == {(2, 48)}
    assert all(one.dtype == torch.float32 and bool(one.isfinite().all()) for one in scored.values())


def test_scores_are_those_of_the_methods(scored, base, topic):
    tokenizer = t.tokenizer()
    asked = {"a": [Sequence(prompt_ids(tokenizer, item.question, False)) for item in topic.split("train")]}
    for name, normalized in (("pnlac", False), ("pnlac_normalized", True)):
        found = localize(base, t.with_other_mlps(base), asked, "mlp_act", "m", 30.0, normalized)
        assert torch.allclose(scored[name], found.scores["a"].float(), rtol=1e-4)
    assert torch.allclose(scored["size"], found.size.float(), rtol=1e-4)
    gates = score(base, stance_items([topic], "right", tokenizer, False), sites=("gate",)).sites["gate"]
    assert torch.allclose(scored["culnig"], gates.float())


def test_equal_models_and_one_question_are_refused(base, topic):
    with pytest.raises(ProofError, match="is the fine-tune the base itself"):
        all_scores(base, copy.deepcopy(base), t.tokenizer(), [topic], "right", False)
    with pytest.raises(InputError, match="Came 1 training questions"):
        all_scores(base, base, t.tokenizer(), [some(topic, 0, 1, 1)], "right", False)


def test_halves_of_a_topic_share_no_question():
    whole = find_topics([packaged_root()])["science"]
    halves = [{i.id for i in some(whole, start, 2, 9).split("train")} for start in (0, 1)]
    assert (len(halves[0]), len(halves[1])) == (5, 4) and not halves[0] & halves[1]


# Overlap


def test_chance_is_the_mean_over_all_pairs_of_sets():
    sets = [list(map(frozenset, combinations(range(5), k))) for k in (2, 3)]
    by_hand = np.mean([len(a & b) / len(a | b) for a, b in product(*sets)])
    assert chance(2, 3, 5) == pytest.approx(by_hand)
    assert chance(5, 5, 5) == 1.0


def test_chance_within_layers_by_hand():
    one = torch.tensor([[4.0, 3, 0, 0], [0, 0, 0, 0]])
    other = torch.tensor([[0, 0, 4.0, 3], [0, 0, 0, 0]])
    a, b = (top_set(x, 0.25, "m") for x in (one, other))
    assert chance_within(a, b) == pytest.approx(1 / 3)  # 2 x 2 / 4 shared of 2 + 2 - 1


def test_a_localiser_agrees_wholly_with_itself_and_ranks_by_spearman():
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(4, 50, generator=generator) for name in "ab"} | {"c": torch.zeros(4, 50)}
    row = agreement({"a": scores["a"], "same": 3 * scores["a"] + 1}, 0.1).iloc[0]
    assert row["jaccard"] == 1.0 and row["rho"] == pytest.approx(1) and row["rho within layers"] == pytest.approx(1)
    a, b = scores["a"].double().numpy(), scores["b"].double().numpy()
    rows = agreement(scores, 0.1).set_index("pair")
    assert rows.loc["a and b", "rho"] == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic)
    within = np.mean([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    assert spearman_within(a, b) == pytest.approx(within)
    assert np.isnan(rows.loc["a and c", "rho"])


def test_layers_are_counted_by_thirds():
    scores = torch.zeros(6, 10)
    scores[4, :3], scores[0, 0] = 1, 1
    row = layers({"a": scores}, 4 / 60).iloc[0]
    assert (row["first third"], row["middle third"], row["last third"]) == (0.25, 0.0, 0.75)
    assert row["fullest layer"] == 4


# Effects


def values(**means: float) -> dict[str, pd.Series]:
    """Runs over 8 items of one topic whose values spread around their mean alike, and 4 texts at 0."""
    index = pd.MultiIndex.from_tuples(
        [("a", f"i{n}", "h") for n in range(8)] + [("text", f"t{n}", "h") for n in range(4)]
    )
    spread = np.array([-1, 1, -2, 2, -3, 3, -1, 1]) * 0.01
    rows = {name: [*(mean + np.roll(spread, n)), 0, 0, 0, 0] for n, (name, mean) in enumerate(means.items())}
    return {name: pd.Series(row, index=index) for name, row in rows.items()}


DOSES = [Dose("suppress", "x", 0.1), Dose("suppress", "x", 0.1, 0), Dose("suppress", "x", 0.1, 1)]


def found(own: float, randoms: tuple[float, float], floor: float = 0.0) -> dict[str, Any]:
    labels = [d.label for d in DOSES]
    runs = values(tuned=1.0, **dict(zip(labels, (own, *randoms), strict=True)))
    table = effects(Responses(runs), DOSES, "tuned", {DOSES[0]: 5}, {"a": floor})
    return table.set_index("outcome").loc["a"].to_dict()


def test_an_effect_is_net_of_the_mean_of_its_random_sets():
    row = found(0.4, (0.81, 0.79))
    assert (row["change"], row["random"], row["net"]) == pytest.approx((-0.6, -0.2, -0.4))
    assert (row["random_least"], row["random_most"]) == pytest.approx((-0.21, -0.19))
    assert row["net_low"] < -0.4 < row["net_high"] and row["told apart"] == "yes"


def test_the_chance_band_by_hand():
    # Variance 0.02 with one degree of freedom: t(0.975, 1) = 12.706; twice as many groups, two degrees: 4.303.
    assert chance_band([[0.7, 0.9]], 2) == pytest.approx(12.706 * (0.02 * 1.5) ** 0.5, rel=1e-4)
    assert chance_band([[0.7, 0.9], [0.1, 0.3]], 2) == pytest.approx(4.3027 * (0.02 * 1.5) ** 0.5, rel=1e-4)
    assert chance_band([[0.7], [0.1]], 1) == float("inf")


def test_a_set_drawn_like_the_random_ones_is_rarely_beyond_the_band():
    generator = np.random.default_rng(0)
    draws = generator.normal(size=(4000, 4, 3))
    beyond = [abs(d[0, 0] - d[0, 1:].mean()) > chance_band(d[:, 1:], 2) for d in draws]
    assert np.mean(beyond) == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize(
    ("own", "randoms", "floor"), [(0.4, (0.4, 0.41), 0), (0.4, (0.7, 0.9), 0), (0.4, (0.80, 0.81), 0.5)]
)  # equal to the random sets, those too far apart among themselves, below the noise floor
def test_what_is_not_told_apart(own, randoms, floor):
    assert found(own, randoms, floor)["told apart"] == "no"


def test_runs_of_other_questions_are_refused():
    runs = values(tuned=1.0, other=0.5)
    runs["other"] = runs["other"].iloc[1:]
    with pytest.raises(InputError, match="Run other asked other questions than tuned"):
        Responses(runs)


def test_the_floor_is_the_base_measured_again():
    assert noise_floor(Responses(values(base=1.0, again=0.75)), "base", "again") == pytest.approx(
        {"a": 0.25, "text": 0}
    )


def test_sentences_follow_the_figures():
    def said(own: float) -> list[str]:
        runs = values(tuned=1.0, **dict(zip([d.label for d in DOSES], (own, 0.81, 0.79), strict=True)))
        table = effects(Responses(runs), DOSES, "tuned", {DOSES[0]: 5}, {"a": 0.0})
        pair = {"size": torch.rand(2, 20), "x": torch.rand(2, 20)}
        shift = {"a": Estimate(own - 1, -0.1, 0.1, 8)}
        one = Found(agreement(pair, 0.1), stability(pair, pair, 0.1), layers(pair, 0.1), shift, {"a": 0.0}, table, None)
        return sentences(one, "a", 0.1)

    strong, none = said(0.2), said(0.8)
    assert "1 of 2 effects" in strong[1] and "not told apart" not in strong[2].split(";")[0]
    assert "0 of 2 effects" in none[1] and "not told apart" in none[2].split(";")[0]
    assert "cannot be told from no change" in strong[0]


def test_the_figure_draws_at_both_widths():
    table = pd.DataFrame([{"localizer": "x", "share": 0.1, "outcome": "a", **found(0.4, (0.81, 0.79))}])
    for width in (860, 350):
        assert len(picture(table)(width).axes) == 1


# The study

STUDY = {
    "analysis": "localizers",
    "name": "tiny",
    "topic": "immigration",
    "tune": {"questions": 8, "recipe": {"mode": "full", "epochs": 1, "learning_rate": 1e-2, "checkpoints": False}},
    "prompts": 4,
    "localizers": ["pnlac", "size"],
    "shares": [0.2],
    "overlap_share": 0.2,
    "random_seeds": [0, 1],
    "patch": {"shares": [0.2], "random_seeds": [0, 1]},
    "measure": {
        "tasks": ["political_stance_immigration_pairs", "neutral_text"],
        "limit": 2,
        "engine": "torch",
        "dtype": "float32",
    },
}


def settings_of(folder: Path, model: str, **changes: Any):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "model": model, **changes}))
    return read_settings(read_yaml(path), path, ANALYSIS.settings)


def test_the_study_runs_and_says_the_same_again(base, stance_cache, tmp_path):
    model, out = t.save(base, tmp_path / "base", chat=True), tmp_path / "out"
    try:
        sheet = ANALYSIS.run(settings_of(tmp_path, model), out)
        before = {path: path.stat().st_mtime_ns for path in out.glob("*/manifest.json")}
        again = ANALYSIS.run(settings_of(tmp_path, model), out)
    finally:
        lease.release()
    assert sheet.sentences == again.sentences
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/manifest.json")} == before
    assert len(before) == 2 + 3 + 2 * 3 + 1 + 2 * 3  # tune, scores; base twice, tuned; suppressed; none, patched
    tables = {section.name: section.table for section in sheet.sections if section.table is not None}
    assert set(tables["suppressed"]["neurons"]) == {19}
    assert len(tables["agreement"]) == len(NAMES) * (len(NAMES) - 1) // 2
    effects_of = [json.loads(p.read_text())["effect"]["largest_change"] for p in before if "suppress" in str(p)]
    assert len(effects_of) == 6 and all(change > 0 for change in effects_of)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"topic": "weather"}, "no topic 'weather'"),
        ({"tune": None}, "exactly one of `tune`"),
        ({"shares": [0.2, 0.2]}, "0.2 stands twice"),
        ({"shares": [2.0]}, r"shares holds 2.0"),
        ({"measure": {}}, "tasks ask .*_open, .* Name the pairs"),
        ({"patch": {"tasks": ["political_stance_race"]}}, "tasks ask political_stance_race_open"),
        ({"random_seeds": [0]}, "random_seeds"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_is_made(base, tmp_path, changes, match):
    model = t.save(base, tmp_path / "base", chat=True)
    with pytest.raises(InputError, match=match):
        ANALYSIS.run(settings_of(tmp_path, model, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_localisers_are_refused(base, tmp_path):
    with pytest.raises(InputError, match="localizers"):
        settings_of(tmp_path, "m", localizers=["probing"])


def test_the_experiment_file_is_one_of_its_analysis():
    path = ROOT / "experiments" / "localizers.yaml"
    assert isinstance(read_settings(read_yaml(path), path, ANALYSIS.settings), ANALYSIS.settings)
