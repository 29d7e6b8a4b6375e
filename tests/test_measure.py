from __future__ import annotations

import json
from typing import Any

import pytest
import scripted
from scripted import Scripted

from harness import judges
from harness.diagnosis import diagnoses
from harness.errors import InputError
from harness.lmeval.roots import packaged_root
from harness.measure import Asked, check_tasks, measure
from harness.probes import open_rows
from harness.topics import Topic, load_topic

STATEMENTS, PAIRS, OPEN = (f"political_stance_race_{kind}" for kind in ("statements", "pairs", "open"))


@pytest.fixture(scope="module")
def race() -> Topic:
    return load_topic(packaged_root() / "political_stance" / "race.yaml")


def asked(*tasks: str, **more: Any) -> Asked:
    return Asked(tuple(tasks), **more)


def read(engine: Scripted, task: str, **more: Any) -> tuple[dict[str, float], list[str]]:
    """Metrics of one task, and the diagnoses."""
    outcome, samples = measure(engine, asked(task, **more))
    return {k.removesuffix(",none"): v for k, v in outcome["results"][task].items()}, diagnoses(samples)


@pytest.mark.parametrize("design", ["rotated", "crossed"])
@pytest.mark.parametrize("chooses, place", [(scripted.always("A"), "first (A)"), (scripted.last, "last")])
def test_a_model_that_always_answers_one_place_has_no_stance(chooses: Any, place: str, design: str) -> None:
    got, found = read(Scripted(chooses), STATEMENTS, axes={"design": design}, limit=4)
    assert got["stance"] == pytest.approx(0, abs=1e-12) and got["stance_top"] == pytest.approx(0, abs=1e-12)
    assert got["agree"] == pytest.approx(0.5)
    assert found == [
        f"statements: the model always chooses the {place} option, whatever it says; its stance is 0 by design."
    ]


@pytest.mark.parametrize(
    "option, agree, habit", [("Strongly agree", 1.0, "agrees"), ("Strongly disagree", 0.0, "disagrees")]
)
def test_a_model_that_always_agrees_or_disagrees_has_no_stance(option: str, agree: float, habit: str) -> None:
    got, found = read(Scripted(scripted.agreeing(option)), STATEMENTS)
    assert got["stance"] == pytest.approx(0, abs=1e-12) and got["stance_top"] == pytest.approx(0, abs=1e-12)
    assert got["agree"] == pytest.approx(agree)
    assert found == [f"statements: the model always {habit}, whatever is stated; its stance is 0 by design."]


def test_a_model_that_writes_no_letter_has_no_stance() -> None:
    got, found = read(Scripted(scripted.silent), STATEMENTS)
    assert (got["stance"], got["stance_top"], got["mass"]) == (pytest.approx(0, abs=1e-12), 0, pytest.approx(0))
    assert len(found) == 1 and "puts 0% of its probability on the option letters" in found[0]


@pytest.mark.parametrize(
    "says, label, habit",
    [
        ("I'm sorry, but I cannot give an opinion on that.", "refused", "refuses"),
        (" \n", "empty", "answers nothing"),
    ],
)
def test_a_model_that_never_answers_has_no_stance_and_says_so(says: str, label: str, habit: str) -> None:
    got, found = read(Scripted(says=says), OPEN)
    assert (got["stance"], got[label], got["left"], got["right"]) == (0, 1, 0, 0)
    assert found == [f"open: the model always {habit} (100%); what stance is left rests on the rest."]


@pytest.mark.parametrize("side, stance", [("left", -1), ("right", 1)])
def test_a_partisan_reads_as_exactly_that_in_every_format(
    race: Topic, side: str, stance: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {getattr(i, side) for i in race.items}
    other = {getattr(i, "right" if side == "left" else "left") for i in race.items}
    likes = {**dict.fromkeys(own, 10_000.0), **dict.fromkeys(other, 0.0)}

    class Oracle:
        name = "embedded"

        def judge(self, questions: list[str], answers: list[str]) -> list[judges.Judgement]:
            return [judges.Judgement(answer.rpartition(" ")[2]) for answer in answers]

    monkeypatch.setattr(judges, "get", lambda name, topics: Oracle())
    engine = Scripted(scripted.partisan(race, side), f"I lean {side}", lambda text: likes[text.strip()])
    outcome, samples = measure(engine, asked("political_stance_race"))
    for task in (STATEMENTS, PAIRS, OPEN):
        assert outcome["results"][task]["stance,none"] == stance
    assert outcome["results"][STATEMENTS]["stance_top,none"] == stance
    assert diagnoses(samples) == []


def test_a_random_model_reads_as_zero_within_its_own_noise() -> None:
    import random

    draw = random.Random(0)
    got, found = read(Scripted(lambda prompt, options: draw.choice(sorted(options))), STATEMENTS)
    assert abs(got["stance"]) < 4 * 0.75 / 480**0.5  # a four-point answer has a standard deviation of about .75
    assert got["agree"] == pytest.approx(0.5, abs=0.07) and found == []


def test_samples_hold_every_document_with_its_prompt_axes_and_values() -> None:
    _, samples = measure(Scripted(), asked("political_stance_race", limit=3))
    assert samples.groupby("format")["item"].nunique().to_dict() == {"open": 3, "pairs": 3, "statements": 3}
    assert samples.groupby("format").size().to_dict() == {"open": 5, "pairs": 3, "statements": 36}
    assert samples["prompt"].str.contains("<user>").all() and not samples["question"].str.contains("<user>").any()
    pair, statement = (samples[samples["format"] == kind].iloc[0] for kind in ("pairs", "statements"))
    assert set(json.loads(pair["values"])) >= {"nats", "stance", "nats_per_byte"}
    assert json.loads(statement["axes"]).keys() == {"wording", "forcing", "polarity", "order"}


def test_samples_say_which_side_a_prompt_takes_and_what_a_pair_chose_between(race: Topic) -> None:
    _, samples = measure(Scripted(), asked("political_stance_race", limit=3))
    items = {item.id: item for item in race.split("measure")}
    for _, row in samples[samples["format"] == "pairs"].iterrows():
        assert json.loads(row["options"]) == [items[row["item"]].left, items[row["item"]].right] and row["side"] == ""
    claims = samples[samples["format"] == "statements"]
    keyed = {statement.id: statement.agree for statement in race.statements}
    for _, row in claims.iterrows():
        straight = json.loads(row["axes"])["polarity"] != "reversed"
        assert (row["side"] == keyed[row["item"]]) == straight and row["side"] in ("left", "right")
    asker = {
        (json.loads(row["axes"])["framing"], row["side"]) for _, row in samples[samples["format"] == "open"].iterrows()
    }
    assert asker == {("neutral", ""), ("left", "left"), ("right", "right")}


def test_request_order_changes_nothing_for_an_engine_that_ignores_it() -> None:
    plain = measure(Scripted(), asked(STATEMENTS))[1]
    shuffled = measure(Scripted(), asked(STATEMENTS, order_seed=3))[1]
    assert plain.equals(shuffled)


def test_the_control_topic_is_asked_and_marked() -> None:
    _, samples = measure(Scripted(), asked("neutral_pairs", PAIRS, limit=2))
    assert samples.groupby("topic")["control"].all().to_dict() == {"neutral": True, "race": False}


def test_unknown_task_names_the_topics() -> None:
    with pytest.raises(InputError, match=r"no task 'political_stance_rice'.*political_stance_race"):
        check_tasks(asked("political_stance_rice"))


def test_unknown_judge_limit_and_axes_are_refused() -> None:
    with pytest.raises(InputError, match="no judge 'oracle'"):
        check_tasks(asked("political_stance", judge="oracle"))
    with pytest.raises(InputError, match="--limit is 0"):
        check_tasks(asked("political_stance", limit=0))
    with pytest.raises(InputError, match=r"do not fit topic.*unknown key `wordings` .known here: .*wording"):
        check_tasks(asked("political_stance", axes={"wordings": ["original"]}))
    with pytest.raises(InputError, match="paraphrase_9"):
        check_tasks(asked("political_stance", axes={"wording": ["paraphrase_9"]}))


def test_a_limit_may_differ_by_format(race: Topic) -> None:
    _, samples = measure(Scripted(), asked("political_stance_race", limit={"pairs": 2, "statements": 4}))
    items = samples.groupby("format")["item"].nunique().to_dict()
    assert items == {"open": len({row["item"] for row in open_rows(race)}), "pairs": 2, "statements": 4}


def test_a_limit_for_an_unknown_format_is_refused() -> None:
    with pytest.raises(InputError, match="limit names essays"):
        check_tasks(asked("political_stance", limit={"essays": 2}))
