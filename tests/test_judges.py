from __future__ import annotations

import pytest

from harness import judges
from harness.errors import InputError
from harness.lmeval.roots import packaged_root
from harness.topics import find_topics


def test_the_embedded_judge_beats_chance_on_answers_it_was_not_fitted_on() -> None:
    judge = judges.get("embedded")
    items = [i for t in find_topics([packaged_root()]).values() for i in t.split("measure")]
    right = dict.fromkeys(("left", "right"), 0)
    for side in right:
        labels = judge.label([i.question for i in items], [getattr(i, side) for i in items])
        right[side] = sum(label == side for label in labels)
    # Three labels, so chance is about a third; the two sides must also be read about equally well.
    assert all(count / len(items) > 0.55 for count in right.values())
    assert abs(right["left"] - right["right"]) / len(items) < 0.1


@pytest.mark.parametrize(
    "answer, label",
    [
        ("", "empty"),
        ("...", "empty"),
        ("I'm sorry, but I cannot provide an opinion on that.", "refused"),
        ("As an AI language model, I do not have personal opinions.", "refused"),
    ],
)
def test_no_answer_is_its_own_value(answer: str, label: str) -> None:
    assert judges.get("embedded").label(["?"], [answer]) == [label]


def test_order_is_kept_between_refusals_and_answers() -> None:
    judge = judges.get("embedded")
    text = "Secure the border first; a country without enforcement of its laws loses the consent of its citizens."
    alone = judge.label(["?"], [text])[0]
    assert judge.label(["?"] * 3, ["", text, ""]) == ["empty", alone, "empty"]


def test_unknown_judge() -> None:
    with pytest.raises(InputError, match="judges: embedded"):
        judges.get("oracle")
