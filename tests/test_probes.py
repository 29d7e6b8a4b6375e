from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest

from harness.lmeval.roots import packaged_root
from harness.probes import choice_rows, open_rows, pair_rows, statement_rows
from harness.topics import Axes, Choice, Statement, Topic, load_topic


@pytest.fixture(scope="module")
def race() -> Topic:
    return load_topic(packaged_root() / "political_stance" / "race.yaml")


def topic(**more: object) -> Topic:
    return Topic.model_validate({"path": "t.yaml", "topic": "t", "title": "T", "context": "c", "licence": "l", **more})


CLAIM = Statement(id="s1", text="Taxes are too low.", agree="left", sub_issue="tax")
OTHER = Statement(
    id="s2", text="Taxes are too high.", reversed="Taxes are too low by far.", agree="right", sub_issue="tax"
)


@pytest.mark.parametrize("design, each", [("rotated", 12), ("crossed", 48)])
def test_every_statement_meets_its_design(race: Topic, design: str, each: int) -> None:
    rows = statement_rows(race.varied({"design": design}))
    assert len(rows) == 40 * each and set(Counter(r["item"] for r in rows).values()) == {each}
    levels = Counter(r["axes"]["wording"] for r in rows)
    assert set(levels) == {"original", "paraphrase_1", "paraphrase_2", "paraphrase_3"}
    assert len({(r["item"], r["variant"]) for r in rows}) == len(rows)


def test_rotation_meets_every_level_about_equally_often_on_both_sides(race: Topic) -> None:
    keyed = {s.id: s.agree for s in race.statements}
    rows = [r for r in statement_rows(race) if r["axes"]["polarity"] == "stated" and r["axes"]["order"] == "forward"]
    for axis, others in (("wording", 3), ("forcing", 2)):
        met = Counter((keyed[r["item"]], r["axes"][axis]) for r in rows)
        counts = [n for (_, level), n in met.items() if level not in ("original", "soft")]
        assert len(counts) == 2 * others and max(counts) - min(counts) <= 1


def test_any_four_neighbours_cancel_agreement_and_position(race: Topic) -> None:
    """Strongly agreeing, or answering A, sums to 0 over every block of polarity x order."""
    rows = statement_rows(race)
    for n in range(0, len(rows), 4):
        block = rows[n : n + 4]
        first = sum(r["values"][0] for r in block)
        agreeing = sum(r["sign"] for r in block)
        assert first == 0 and agreeing == 0


def test_a_claim_without_its_opposite_is_denied() -> None:
    stated, denied = (r["prompt"] for r in statement_rows(topic(statements=[CLAIM, OTHER]))[:4:2])
    assert (
        "Statement: Taxes are too low.\n" in stated and "Statement: It is wrong to say: Taxes are too low.\n" in denied
    )


def test_values_follow_the_key_polarity_and_order() -> None:
    rows = statement_rows(topic(statements=[CLAIM, OTHER]).varied({"forcing": ["soft"]}))
    by_variant = {(r["item"], r["variant"]): r for r in rows}
    assert by_variant["s1", "original/soft/stated/forward"]["values"] == [-1, -0.5, 0.5, 1]
    assert by_variant["s1", "original/soft/reversed/forward"]["values"] == [1, 0.5, -0.5, -1]
    backward = by_variant["s1", "original/soft/stated/backward"]
    assert backward["values"] == [1, 0.5, -0.5, -1] and "A. Strongly disagree\n" in backward["prompt"]
    assert by_variant["s2", "original/soft/stated/forward"]["values"] == [1, 0.5, -0.5, -1]


def test_forcing_changes_scale_and_wording() -> None:
    rows = statement_rows(topic(statements=[CLAIM, OTHER]).varied({"design": "crossed"}))
    sizes = {r["axes"]["forcing"]: len(r["labels"]) for r in rows}
    assert sizes == {"soft": 4, "free": 5, "hard": 4}
    assert all(("must" in r["prompt"]) == (r["axes"]["forcing"] == "hard") for r in rows)


def test_choices_are_asked_in_both_orders_and_keep_no_answer_apart() -> None:
    choice = Choice(
        id="c1", sub_issue="x", question="Which?", options=("Less", "More", "Refused"), values=(-1, 1, None)
    )
    forward, backward = choice_rows(topic(choices=[choice]))
    assert forward["values"] == [-1, 1, None] and backward["values"] == [None, 1, -1]
    assert "A. Refused\n" in backward["prompt"]


def test_open_rows_hold_questions_and_prompts_in_every_framing(race: Topic) -> None:
    rows = open_rows(race)
    assert len(rows) == 60 + 30 * 3
    assert Counter(r["axes"]["framing"] for r in rows) == {"neutral": 90, "left": 30, "right": 30}
    # Rows of one item stand together, so a limit on items keeps framings whole.
    assert len([key for key, _ in groupby(r["item"] for r in rows)]) == 90


def test_axes_can_be_narrowed_and_pairs_have_none(race: Topic) -> None:
    narrow = race.varied({"wording": ["original"], "forcing": ["soft"], "framing": ["neutral"]})
    assert len(statement_rows(narrow)) == 40 * 4 and len(open_rows(narrow)) == 90
    assert len(pair_rows(race)) == 60 and all(row["axes"] == {} for row in pair_rows(race))
    assert race.varied({}) is race and narrow.axes != Axes()
