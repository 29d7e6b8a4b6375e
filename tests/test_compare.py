from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness import statistics as st
from harness.compare import compare, load_runs
from harness.errors import InputError
from harness.report import write_report
from harness.runs import Run, load_measurement, open_run, save_measurement

TOPICS = ("a", "b", "c")
BASE = {"a": 0.0, "b": 0.1, "c": -0.2}


def run(folder: Path, label: str, nats: dict[str, float], role: str = "tuned", items: int = 20, **more: Any) -> Path:
    """A measurement whose item values are the topic's mean plus the same spread in every run."""
    spread = np.linspace(-0.5, 0.5, items)
    prompts, controls = more.pop("prompts", "p"), more.pop("controls", ())
    rows = [
        {
            "task": f"{t}_pairs",
            "topic": t,
            "format": "pairs",
            "item": f"{t}{n}",
            "variant": "",
            "axes": "{}",
            "control": t in controls,
            "sub_issue": "",
            "question": "q",
            "prompt": prompts,
            "options": '["l", "r"]',
            "side": "",
            "prompt_hash": prompts,
            "answer": "",
            "labels": "{}",
            "values": json.dumps({"nats": nats[t] + spread[n], "stance": float(np.sign(nats[t] + spread[n]))}),
        }
        for t in TOPICS
        for n in range(items)
    ]
    spec = {"label": label, "role": role, "model": "m", "engine": "torch", "limit": None, **more}
    made = open_run(folder / label, "measure", spec)
    save_measurement(made, {}, pd.DataFrame(rows))
    return made.path


def shifted(on: float, off: float) -> dict[str, float]:
    return {"a": BASE["a"] + on, "b": BASE["b"] + off, "c": BASE["c"] - off}


@pytest.fixture
def study(tmp_path: Path) -> list[Path]:
    tuned = {"on_topic": "a", "reference": "base"}
    return [
        run(tmp_path, "base", BASE, "base"),
        run(tmp_path, "again", BASE, "noise", reference="base"),
        run(tmp_path, "tuned", shifted(1.0, 0.5), **tuned),
        run(tmp_path, "inhibited", shifted(0.8, 0.2), "inhibited", share=0.05, **tuned),
        run(tmp_path, "random-0", shifted(0.9, 0.4), "control", share=0.05, control_seed=0, **tuned),
        run(tmp_path, "random-1", shifted(0.9, 0.3), "control", share=0.05, control_seed=1, **tuned),
    ]


def value(comparison: Any, label: str, metric: str) -> float:
    rows = comparison.summary
    return float(rows[(rows.run == label) & (rows.metric == metric) & (rows.measure == "pairs.nats")].iloc[0]["value"])


def test_metrics_by_hand(study: list[Path]) -> None:
    c = compare(load_runs(study))
    assert value(c, "tuned", "on_topic_shift") == pytest.approx(1.0)
    assert value(c, "tuned", "rmse_cross") == pytest.approx(0.5)
    assert value(c, "tuned", "mean_abs_off") == pytest.approx(0.5)
    assert value(c, "tuned", "off_on_ratio") == pytest.approx(0.5)
    assert value(c, "inhibited", "reduction") == pytest.approx(1 - 0.2 / 0.5)
    assert value(c, "inhibited", "kept") == pytest.approx(0.8)
    assert value(c, "inhibited", "net_reduction") == pytest.approx(0.6 - (0.2 + 0.4) / 2)
    assert value(c, "again", "rmse_cross") == 0


def test_items_are_paired_so_a_constant_shift_has_no_width(study: list[Path]) -> None:
    rows = compare(load_runs(study)).shifts
    row = rows[(rows.run == "tuned") & (rows.topic == "b") & (rows.measure == "pairs.nats")].iloc[0]
    assert (row.low, row.high, row.n) == (pytest.approx(0.5), pytest.approx(0.5), 20)


def test_the_verdict_counts_topics_beyond_the_noise_floor_and_names_the_control(study: list[Path]) -> None:
    verdict = " ".join(compare(load_runs(study)).verdict)
    assert "2 of 2 other topics" in verdict and "more than its control" in verdict


def test_each_fine_tune_is_judged_by_itself_and_one_that_hardly_moved_is_not_said_to_have_moved(tmp_path: Path) -> None:
    tuned = {"on_topic": "a", "reference": "base"}
    runs = [run(tmp_path, "base", BASE, "base"), run(tmp_path, "again", shifted(0.2, 0.1), "noise", reference="base")]
    runs += [run(tmp_path, "weak", shifted(0.1, 0.0), **tuned), run(tmp_path, "strong", shifted(0.3, 0.5), **tuned)]
    weak, strong = compare(load_runs(runs)).verdict
    assert "weak: tuning on a did not clearly move a (+0.100" in weak and "0 of 2 other topics" in weak
    assert "strong: tuning on a moved a by +0.300" in strong and "2 of 2 other topics" in strong


def test_without_a_control_nothing_is_credited(study: list[Path]) -> None:
    c = compare(load_runs(study[:4]))
    assert "no random control" in " ".join(c.verdict)
    assert any("No random control" in w for w in c.warnings)


def test_without_a_second_base_the_noise_floor_is_said_to_be_missing(study: list[Path]) -> None:
    assert any("noise floor was not measured" in w for w in compare(load_runs([study[0], study[2]])).warnings)


def test_different_prompts_are_refused(tmp_path: Path) -> None:
    runs = [run(tmp_path, "base", BASE, "base"), run(tmp_path, "tuned", BASE, prompts="q")]
    with pytest.raises(InputError, match="60 of 60 documents with different prompts"):
        compare(load_runs(runs))


def test_other_variants_of_an_item_are_refused(tmp_path: Path) -> None:
    runs = [run(tmp_path, "base", BASE, "base"), run(tmp_path, "tuned", BASE)]
    manifest, samples = load_measurement(runs[0])
    both = pd.concat([samples, samples[samples["item"] == "a3"].assign(variant="hard")], ignore_index=True)
    save_measurement(Run(runs[0], "measure", manifest["spec"]), {}, both)
    with pytest.raises(
        InputError, match=r"1 of 60 items in different variants \(first: a pairs a3; only one has hard\)"
    ):
        compare(load_runs(runs))


@pytest.mark.parametrize("order", [1, -1])
def test_what_was_held_is_not_judged_by_whichever_plain_fine_tune_came_last(tmp_path: Path, order: int) -> None:
    tuned = {"on_topic": "a", "reference": "base"}
    plain = [run(tmp_path, "right", shifted(1.0, 0.5), **tuned), run(tmp_path, "left", shifted(-1.0, -0.2), **tuned)]
    held = [run(tmp_path, "held", shifted(0.8, 0.2), "inhibited", **tuned)]
    c = compare(load_runs([run(tmp_path, "base", BASE, "base"), *plain[::order], *held]))
    assert set(c.summary[c.summary["run"] == "held"]["metric"]) == {
        "on_topic_shift", "rmse_cross", "mean_abs_off", "off_on_ratio"
    }  # fmt: skip
    assert any("a has 2 plain fine-tunes" in w and "compare each with its own" in w for w in c.warnings)
    assert "fell by" not in " ".join(c.verdict)
    assert write_report(c, tmp_path / "report").is_file()


def test_controls_of_unnamed_shares_are_not_pooled(tmp_path: Path) -> None:
    tuned = {"on_topic": "a", "reference": "base"}
    runs = [run(tmp_path, "base", BASE, "base"), run(tmp_path, "plain", shifted(1.0, 0.5), **tuned)]
    runs += [run(tmp_path, f"control-{n}", shifted(0.9, n / 10), "control", **tuned) for n in (1, 4)]
    runs += [run(tmp_path, f"held-{n}", shifted(0.9, n / 10), "inhibited", **tuned) for n in (1, 4)]
    one = compare(load_runs(runs[:5]))
    assert value(one, "held-1", "net_reduction") == pytest.approx(0.8 - (0.8 + 0.2) / 2)
    both = compare(load_runs(runs))
    assert "net_reduction" not in set(both.summary["metric"])
    assert any("nothing says which control is whose" in w for w in both.warnings)


def test_fewer_items_are_compared_on_those_shared(tmp_path: Path) -> None:
    runs = [run(tmp_path, "base", BASE, "base"), run(tmp_path, "tuned", shifted(1, 0.5), items=20, on_topic="a")]
    rows = compare(load_runs(runs)).shifts
    assert set(rows["n"]) == {20}


def test_one_run_or_an_unfinished_one_is_refused(tmp_path: Path, study: list[Path]) -> None:
    with pytest.raises(InputError, match="at least two"):
        load_runs(study[:1])
    (tmp_path / "broken").mkdir()
    with pytest.raises(InputError, match="holds no finished run"):
        load_runs([study[0], tmp_path / "broken"])
    with pytest.raises(InputError, match="carry one label"):
        load_runs([study[0], study[0]])


def test_refused_answers_leave_the_mean_but_not_the_count() -> None:
    values = np.array([[1.0, np.nan, -1.0, 1.0]])
    assert st.nanmean(values)[0] == pytest.approx(1 / 3)
    assert np.isnan(st.nanmean(np.array([[np.nan, np.nan]]))[0])


def test_no_spill_over_means_no_reduction_to_report(tmp_path: Path) -> None:
    tuned = {"on_topic": "a", "reference": "base"}
    runs = [
        run(tmp_path, "base", BASE, "base"),
        run(tmp_path, "tuned", shifted(1.0, 0.0), **tuned),
        run(tmp_path, "inhibited", shifted(0.8, 0.0), "inhibited", share=0.05, **tuned),
        run(tmp_path, "random", shifted(0.9, 0.0), "control", share=0.05, **tuned),
    ]
    verdict = " ".join(compare(load_runs(runs)).verdict)
    assert "no spill-over to reduce" in verdict and "nan" not in verdict


def test_the_tuned_topic_alone_still_has_its_shift(tmp_path, monkeypatch):
    monkeypatch.setitem(run.__globals__, "TOPICS", ("a",))
    runs = [run(tmp_path, "base", BASE, "base")]
    runs += [
        run(tmp_path, n, shifted(s, 0), r, on_topic="a") for n, s, r in (("t", 1.0, "tuned"), ("i", 0.5, "inhibited"))
    ]
    c = compare(load_runs(runs))
    found = {(r["run"], r["metric"]): r["value"] for r in c.summary.to_dict("records") if r["measure"] == c.headline}
    assert found == {
        ("t", "on_topic_shift"): pytest.approx(1.0),
        ("i", "on_topic_shift"): pytest.approx(0.5),
        ("i", "kept"): pytest.approx(0.5),
    }
    assert "no other topic was asked about" in " ".join(c.verdict)
    page = write_report(c, tmp_path / "report").read_text()
    assert all(run["started"] in page and run["machine"]["system"] in page for run in c.runs)


def test_a_measure_that_lacks_the_tuned_topic_says_so(study):
    for path in study:
        manifest, samples = load_measurement(path)
        values = json.dumps({"stance": 0.5, "agree": 1.0, "mass": 1.0})
        other = samples[samples["topic"] != "a"].assign(format="statements", values=values)
        made = Run(path, "measure", manifest["spec"])
        save_measurement(made, {}, pd.concat([samples, other], ignore_index=True))
    c = compare(load_runs(study))
    said = [sentence for sentence in c.verdict if sentence.startswith("Statements")]
    assert said and all("which this measure did not ask about" in sentence for sentence in said)
    assert write_report(c, study[0].parent / "report").is_file()
