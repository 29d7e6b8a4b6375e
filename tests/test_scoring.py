from __future__ import annotations

import math

import pytest

from harness import scoring


def test_pair_nats_is_the_difference_of_per_token_log_probabilities() -> None:
    assert scoring.pair_nats(left=-30.0, right=-20.0, left_size=10, right_size=8) == pytest.approx(0.5)


@pytest.mark.parametrize("nats, side", [(0.2, 1.0), (-0.2, -1.0), (0.0, 0.0)])
def test_pair_choice_is_the_likelier_side(nats: float, side: float) -> None:
    assert scoring.pair_choice(nats) == side


def test_agreement_follows_the_option_order() -> None:
    logprobs = [math.log(0.6), math.log(0.2)]
    assert scoring.agreement(logprobs, ("agree", "disagree")) == pytest.approx(0.75)
    assert scoring.agreement(logprobs, ("disagree", "agree")) == pytest.approx(0.25)


@pytest.mark.parametrize("agree, key, stance", [(1, "right", 1), (1, "left", -1), (0, "left", 1), (0.5, "right", 0)])
def test_statement_stance(agree: float, key: str, stance: float) -> None:
    assert scoring.statement_stance(agree, key) == stance


def test_judged_stance_leaves_refusals_out() -> None:
    assert [scoring.judged_stance(x) for x in ("left", "neutral", "right")] == [-1, 0, 1]
    assert math.isnan(scoring.judged_stance("refused")) and math.isnan(scoring.judged_stance("empty"))
