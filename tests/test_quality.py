from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.compare import Measured
from harness.paired import item_values
from harness.quality import COLUMNS, quality

LEANS = ("left", "neutral", "right")


def measured(label: str, role: str, rows: list[dict[str, Any]], **manifest: Any) -> Measured:
    filled = [{"variant": "", "axes": "{}", **row, "values": json.dumps(row["values"])} for row in rows]
    return Measured(label, role, Path(label), manifest, pd.DataFrame(filled))


def pairs(label: str, role: str, values: np.ndarray, **manifest: Any) -> Measured:
    rows = [
        {"topic": "race", "format": "pairs", "item": f"i{n}", "side": "", "values": {"nats": float(value)}}
        for n, value in enumerate(values)
    ]
    return measured(label, role, rows, **manifest)


def frames(*runs: Measured) -> dict[str, pd.DataFrame]:
    tables = {"pairs.nats": {run.label: item_values(run.samples, "pairs", "nats") for run in runs}}
    return quality(list(runs), tables, 0)


def test_models_that_every_half_spaces_alike_are_perfectly_reliable() -> None:
    items = np.linspace(-1, 1, 12)
    runs = [pairs(f"m{n}", role, items + shift) for n, (role, shift) in enumerate(
        [("base", 0.0), ("tuned", 0.5), ("inhibited", 0.3), ("control", 0.9)]
    )]  # fmt: skip
    found = frames(*runs)["reliability"]
    assert found.to_dict("records") == [
        {"measure": "pairs.nats", "topic": "race", "models": 4, "items": 12, "split_half": pytest.approx(1.0)}
    ]


def test_a_shift_of_single_items_is_not_reliable_and_noise_counts_as_no_model() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=30)
    moved = [pairs(f"m{n}", "tuned", base + rng.normal(size=30)) for n in range(6)]
    runs = [pairs("base", "base", base), pairs("again", "noise", base), *moved, pairs("patch", "patched", base[:5])]
    row = frames(*runs)["reliability"].iloc[0]
    assert (row["models"], row["items"]) == (7, 30)
    assert row["split_half"] < 0.8
    assert np.isnan(frames(*runs[:3])["reliability"]["split_half"].iloc[0])


def test_rates_by_the_side_of_the_asker_by_hand() -> None:
    refused = {"left": [0, 0, 0, 1], "neutral": [1, 1, 1, 1], "right": [1, 1, 0, 1]}
    rows = [
        {"topic": "race", "format": "open", "item": f"p{n}", "variant": side, "side": side.replace("neutral", "")}
        | {"values": {"refused": value}}
        for side in LEANS
        for n, value in enumerate(refused[side])
    ]
    found = quality([measured("base", "base", rows)], {}, 0)["sides"].to_dict("records")
    assert len(found) == 1
    row = found[0]
    assert (row["label"], row["left"], row["right"], row["difference"], row["n"]) == ("refused", 0.25, 0.75, 0.5, 4)
    assert row["low"] <= 0.5 <= row["high"]


def test_claims_by_side_and_prompts_of_no_side() -> None:
    rows = [
        {
            "topic": "race",
            "format": "statements",
            "item": f"s{n}",
            "variant": side,
            "side": side,
            "values": {"mass": mass},
        }
        for n in range(3)
        for side, mass in (("left", 0.9), ("right", 0.6))
    ]
    row = quality([measured("base", "base", rows)], {}, 0)["sides"].iloc[0]
    assert (row["format"], row["label"], row["n"]) == ("statements", "mass", 3)
    assert row["difference"] == pytest.approx(-0.3)
    assert quality([pairs("base", "base", np.zeros(3))], {}, 0)["sides"].empty


def test_axes_and_judges_come_from_the_runs_own_manifests() -> None:
    effect = dict.fromkeys(COLUMNS["axes"][4:], 1.0) | {
        "format": "open",
        "axis": "framing",
        "level": "left - neutral",
    }
    agreed = {"judges": ["embedded", "local"], "answers": 8, "alpha": 0.5, "alpha_sides": 0.6}
    found = frames(pairs("base", "base", np.zeros(4), axes=[effect], judges=agreed), pairs("b", "tuned", np.ones(4)))
    assert found["axes"].to_dict("records") == [{"run": "base", **effect}]
    assert found["judges"].to_dict("records") == [{"run": "base", **agreed, "judges": "embedded, local"}]
    assert all(list(found[name].columns) == columns for name, columns in COLUMNS.items())
