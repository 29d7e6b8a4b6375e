from __future__ import annotations

import json
from itertools import product

import pandas as pd
import pytest

from harness.axes import axis_effects
from harness.diagnosis import diagnoses


def statements(stance: float = 0.0, first: float = 0.0, agree: float = 0.5, paraphrase: float = 0.0) -> pd.DataFrame:
    """Four items, each at the original wording, one paraphrase and another forcing."""
    rows = []
    for item in range(4):
        for wording, forcing in (("original", "soft"), ("paraphrase_1", "soft"), ("original", "hard")):
            shifted = stance + (paraphrase if wording != "original" else 0.0)
            values = {"stance": shifted, "first": first, "agree": agree, "mass": 0.9}
            axes = {"wording": wording, "forcing": forcing, "polarity": "stated", "order": "forward"}
            rows.append(
                {"format": "statements", "topic": "t", "item": f"s{item}", "variant": "", "answer": ""}
                | {"values": json.dumps(values), "axes": json.dumps(axes)}
            )
    return pd.DataFrame(rows)


def effect(frame: pd.DataFrame, axis: str) -> float:
    return float(frame[frame["axis"] == axis]["value"].iloc[0])


def test_every_effect_is_read_where_it_cannot_cancel() -> None:
    found = axis_effects(statements(stance=0.2, first=0.6, agree=0.9, paraphrase=0.3))
    assert effect(found, "order") == pytest.approx(0.6)
    assert effect(found, "polarity") == pytest.approx(0.8)
    assert effect(found, "wording") == pytest.approx(0.3)
    assert effect(found, "forcing") == pytest.approx(0.0)
    assert found[found["axis"] == "wording"]["level"].item() == "paraphrase_1 - original"
    assert set(found["n"]) == {4}


def test_crossed_axes_do_not_mix(stance: float = 0.1) -> None:
    rows = []
    for item, wording, forcing in product(range(4), ("original", "paraphrase_1"), ("soft", "hard")):
        values = {"stance": stance + (0.4 if forcing == "hard" else 0.0)}
        axes = {"wording": wording, "forcing": forcing}
        rows.append(
            {"format": "statements", "topic": "t", "item": f"s{item}", "variant": "", "answer": ""}
            | {"values": json.dumps(values), "axes": json.dumps(axes)}
        )
    found = axis_effects(pd.DataFrame(rows))
    assert effect(found, "wording") == pytest.approx(0) and effect(found, "forcing") == pytest.approx(0.4)
    assert found[found["axis"] == "wording"]["spread"].item() == pytest.approx(0)
    assert found[found["axis"] == "forcing"]["spread"].item() == pytest.approx(0.2)


def test_wordings_that_take_turns_over_unlike_items_have_no_spread_of_their_own() -> None:
    rows = []
    for item, other in enumerate(("paraphrase_1", "paraphrase_2")):
        for wording in ("original", other):
            rows.append(
                {"format": "statements", "topic": "t", "item": f"s{item}", "variant": "", "answer": ""}
                | {"values": json.dumps({"stance": float(item)})}
                | {"axes": json.dumps({"wording": wording, "forcing": "soft"})}
            )
    found = axis_effects(pd.DataFrame(rows))
    assert list(found["value"]) == [0, 0] and set(found["spread"]) == {0}


def test_a_steady_model_has_no_effects_and_no_spread() -> None:
    found = axis_effects(statements(stance=0.4))
    assert found["value"].abs().max() == 0
    assert found["spread"].dropna().abs().max() == pytest.approx(0)
    assert diagnoses(statements(stance=0.4)) == []


def test_framing_is_compared_within_its_prompt_and_kinds_stand_alone() -> None:
    rows = []
    for item in range(3):
        for framing, stance in (("neutral", 0.0), ("left", -0.5), ("right", 0.25)):
            rows.append(
                {"format": "open", "topic": "t", "item": f"p{item}", "variant": framing, "answer": "x"}
                | {"axes": json.dumps({"kind": "advice", "framing": framing}), "values": json.dumps({"stance": stance})}
            )
    rows.append(
        {"format": "open", "topic": "t", "item": "q", "variant": "", "answer": "x"}
        | {"axes": json.dumps({"kind": "question", "framing": "neutral"}), "values": json.dumps({"stance": 1.0})}
    )
    found = axis_effects(pd.DataFrame(rows)).set_index("level")["value"].to_dict()
    assert found["left - neutral"] == pytest.approx(-0.5) and found["right - neutral"] == pytest.approx(0.25)
    assert found["question"] == 1 and found["advice"] == pytest.approx(-0.25 / 3)
