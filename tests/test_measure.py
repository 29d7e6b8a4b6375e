from __future__ import annotations

import json
from typing import Any

import pytest
from scripted import Scripted

from harness.errors import InputError
from harness.measure import Asked, check_tasks, measure
from harness.topics import load_topic


def asked(*tasks: str, **more: Any) -> Asked:
    return Asked(tuple(tasks), **more)


def results(engine: Scripted, task: str) -> dict[str, float]:
    outcome, _ = measure(engine, asked(task))
    return {k.removesuffix(",none"): v for k, v in outcome["results"][task].items()}


def test_a_model_that_always_answers_a_has_no_stance() -> None:
    got = results(Scripted("A"), "political_stance_race_statements")
    assert got["stance"] == pytest.approx(0, abs=1e-9)
    assert got["agree"] == pytest.approx(0.5)


@pytest.mark.parametrize("always, agree", [("agree", 1.0), ("disagree", 0.0)])
def test_a_model_that_always_agrees_or_disagrees_has_no_stance(always: str, agree: float) -> None:
    got = results(Scripted(always), "political_stance_race_statements")
    assert got["stance"] == pytest.approx(0, abs=1e-6)
    assert got["agree"] == pytest.approx(agree, abs=1e-6)


def test_a_model_that_refuses_has_no_stance_and_says_so() -> None:
    got = results(Scripted(says="I'm sorry, but I cannot give an opinion on that."), "political_stance_race_open")
    assert (got["stance"], got["refused"], got["left"], got["right"]) == (0, 1, 0, 0)


def test_empty_answers_are_counted_as_empty() -> None:
    got = results(Scripted(says=" \n"), "political_stance_race_open")
    assert (got["stance"], got["empty"]) == (0, 1)


def test_a_model_that_likes_right_answers_reads_as_right() -> None:
    from harness.lmeval.roots import packaged_root

    rights = {i.right for i in load_topic(packaged_root() / "race.yaml").items}
    got = results(Scripted(likes=lambda text: 50.0 if text.strip() in rights else 0.0), "political_stance_race_pairs")
    assert got["stance"] == 1
    assert got["nats"] > 0.1


def test_samples_hold_every_document_with_its_prompt_and_values() -> None:
    _, samples = measure(Scripted(), asked("political_stance_race", limit=3))
    assert samples.groupby("format").size().to_dict() == {"open": 3, "pairs": 3, "statements": 3}
    assert samples["prompt"].str.contains("<user>").all()
    assert set(json.loads(samples[samples["format"] == "pairs"].iloc[0]["values"])) >= {
        "nats",
        "stance",
        "nats_per_byte",
    }


def test_request_order_changes_nothing_for_an_engine_that_ignores_it() -> None:
    plain = measure(Scripted(), asked("political_stance_race_statements"))[1]
    shuffled = measure(Scripted(), asked("political_stance_race_statements", order_seed=3))[1]
    assert plain.equals(shuffled)


def test_limited_statements_stay_balanced_between_the_keys() -> None:
    got = measure(Scripted("agree"), asked("political_stance_race", limit=8))[0]["results"]
    assert got["political_stance_race_statements"]["stance,none"] == pytest.approx(0, abs=1e-6)


def test_unknown_task_names_the_topics() -> None:
    with pytest.raises(InputError, match=r"no task 'political_stance_rice'.*political_stance_race"):
        check_tasks(asked("political_stance_rice"))


def test_unknown_judge_and_bad_limit_are_refused() -> None:
    with pytest.raises(InputError, match="no judge 'oracle'"):
        check_tasks(asked("political_stance", judge="oracle"))
    with pytest.raises(InputError, match="--limit is 0"):
        check_tasks(asked("political_stance", limit=0))


def test_a_limit_may_differ_by_format() -> None:
    _, samples = measure(Scripted(), asked("political_stance_race", limit={"pairs": 2, "statements": 4}))
    assert samples.groupby("format").size().to_dict() == {"open": 40, "pairs": 2, "statements": 4}


def test_a_limit_for_an_unknown_format_is_refused() -> None:
    with pytest.raises(InputError, match="limit names essays"):
        check_tasks(asked("political_stance", limit={"essays": 2}))
