from __future__ import annotations

import math

import pytest

from harness import scoring

LIKERT = (1.0, 0.5, -0.5, -1.0)


def test_pair_nats_is_the_difference_of_per_token_log_probabilities() -> None:
    assert scoring.pair_nats(left=-30.0, right=-20.0, left_size=10, right_size=8) == pytest.approx(0.5)


@pytest.mark.parametrize("nats, side", [(0.2, 1.0), (-0.2, -1.0), (0.0, 0.0)])
def test_pair_choice_is_the_likelier_side(nats: float, side: float) -> None:
    assert scoring.pair_choice(nats) == side


def test_a_choice_by_hand() -> None:
    """Shares .4 .3 .2 .1 once the half that went to no letter is left out: .4*1 + .3*.5 - .2*.5 - .1*1 = .35."""
    answer = scoring.chosen([math.log(p) for p in (0.2, 0.15, 0.1, 0.05)], LIKERT)
    assert answer.expected == pytest.approx(0.35)
    assert answer.top == 1.0
    assert answer.mass == pytest.approx(0.5)
    # Places 1, 1/3, -1/3, -1: .4 + .1 - .0667 - .1.
    assert answer.first == pytest.approx(1 / 3)
    assert answer.declined == pytest.approx(0)


def test_options_that_are_no_answer_count_as_declined_and_not_as_neutral() -> None:
    answer = scoring.chosen([math.log(p) for p in (0.25, 0.25, 0.5)], (1.0, -0.5, None))
    assert answer.expected == pytest.approx(0.25)
    assert math.isnan(answer.top)
    assert answer.declined == pytest.approx(0.5)


def test_ties_are_averaged_so_that_indifference_is_zero() -> None:
    answer = scoring.chosen([-3.0] * 4, LIKERT)
    assert (answer.expected, answer.top, answer.first) == (pytest.approx(0), pytest.approx(0), pytest.approx(0))


def test_a_constant_on_all_letters_changes_only_the_mass() -> None:
    one, two = (scoring.chosen([x + c for x in (-1.0, -2.0, -3.0, -4.0)], LIKERT) for c in (0.0, -5.0))
    assert (one.expected, one.top, one.first) == pytest.approx((two.expected, two.top, two.first))
    assert two.mass == pytest.approx(one.mass * math.exp(-5))


def test_judged_stance_leaves_out_what_is_no_answer() -> None:
    assert [scoring.judged_stance(x) for x in ("left", "neutral", "right")] == [-1, 0, 1]
    assert all(math.isnan(scoring.judged_stance(x)) for x in ("refused", "empty", "off_topic", "unparsed"))
