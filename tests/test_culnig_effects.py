"""Effects net of controls, and what makes one count."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from harness.errors import InputError
from plugins.culnig_effects import by_item, effect, estimate, group_of, groups, of_group


def frame(values, task="culture_usa"):
    index = pd.MultiIndex.from_arrays(
        [[task] * len(values), [f"i{n}" for n in range(len(values))]], names=("task", "item")
    )
    values = np.asarray(values, float)
    return pd.DataFrame({"acc": (values > 0.5).astype(float), "probability": values}, index=index)


BASE = np.linspace(0.2, 0.6, 12)


def test_net_of_controls_by_hand():
    controls = [frame(BASE - 0.1), frame(BASE - 0.3)]
    e = effect("probability", frame(BASE), frame(BASE), frame(BASE - 0.5), controls)
    assert (e.own, e.net.value) == (pytest.approx(-0.5), pytest.approx(-0.3))  # the controls' mean is -0.2
    assert e.controls == (pytest.approx(-0.1), pytest.approx(-0.3)) and e.net.n == 12 and e.floor == 0
    assert e.before.value == pytest.approx(0.4) and e.after.value == pytest.approx(-0.1)
    alone = effect("probability", frame(BASE), frame(BASE), frame(BASE - 0.5), [])
    assert alone.net.value == pytest.approx(-0.5) and alone.controls == ()


def noisy(shift, seed):
    return frame(BASE + shift + np.random.default_rng(seed).normal(0, 0.01, 12))


@pytest.mark.parametrize(
    "shift, controls, floor, counts",
    [
        (-0.2, (-0.01, 0.01), 0.0, True),
        (0.0, (-0.01, 0.01), 0.0, False),  # its interval holds 0
        (-0.2, (-0.3, 0.0), 0.0, False),  # one random set did as much
        (-0.2, (-0.01, 0.01), 0.5, False),  # asking the base again moves more
    ],
)
def test_an_effect_counts_beyond_its_controls_and_the_noise(shift, controls, floor, counts):
    again = BASE.copy()
    again[0] += floor
    others = [noisy(c, seed) for seed, c in enumerate(controls)]
    assert effect("probability", frame(BASE), frame(again), noisy(shift, 9), others).counts is counts


def test_few_items_never_count():
    five = [frame(v[:5]) for v in (BASE, BASE, BASE - 0.2, BASE)]
    assert not effect("probability", five[0], five[1], five[2], [five[3]]).counts


def test_other_items_are_refused():
    with pytest.raises(InputError, match="different items"):
        effect("acc", frame(BASE), frame(BASE), frame(BASE[:8]), [])


def test_items_are_resampled_within_their_task():
    # Two tasks without any spread inside: whatever is drawn, the mean stays.
    both = pd.concat([frame([0.0] * 8, "culture_usa"), frame([1.0] * 4, "culture_china")])["probability"]
    e = estimate(both)
    assert (e.value, e.low, e.high, e.n) == (pytest.approx(1 / 3), pytest.approx(1 / 3), pytest.approx(1 / 3), 12)
    mixed = estimate(frame(BASE)["probability"])
    assert mixed.low < 0.4 < mixed.high and mixed.high - mixed.low == pytest.approx(
        2 * 1.96 * BASE.std() / 12**0.5, rel=0.2
    )


def test_groups():
    names = {"culture_usa": "culture", "culture_control_grammar": "grammar", "culture_copying": "copying"}
    names |= {"culture_noquestion": "noquestion", "qnli": "qnli"}
    assert {task: group_of(task) for task in names} == names
    both = pd.concat([frame(BASE, task) for task in ("culture_copying", "culture_usa", "culture_china")])
    assert groups(both) == ["culture", "copying"]
    assert len(of_group(both, "culture")) == 24 and len(of_group(both, "culture_usa")) == 12


def test_samples_become_rows_and_others_are_refused():
    samples = pd.DataFrame({"task": ["culture_usa"] * 2, "item": ["b", "a"], "prompt_hash": ["2", "1"]})
    samples["values"] = [json.dumps({"acc": 1.0, "probability": 0.7}), json.dumps({"acc": 0.0, "probability": 0.2})]
    rows = by_item(samples)
    assert rows["probability"].tolist() == [0.2, 0.7] and rows.index.tolist() == [
        ("culture_usa", "a", "1"),
        ("culture_usa", "b", "2"),
    ]
    other = by_item(samples.assign(prompt_hash=["2", "3"]))
    with pytest.raises(InputError, match="different items or prompts"):
        effect("probability", rows, rows, other, [])
    samples["values"] = [json.dumps({"acc": 1.0}), json.dumps({"acc": 0.0})]
    with pytest.raises(InputError, match="no probability"):
        by_item(samples)
