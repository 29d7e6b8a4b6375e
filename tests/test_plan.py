"""Plans: the steps that a study would make, what of them is there, and figures that can be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny as t
import yaml
from click.testing import CliRunner

from harness import costs
from harness.cli import main
from harness.config import load_experiment
from harness.costs import ModelCost
from harness.experiment_plan import plan
from harness.measure import Asked
from harness.mitigation import Training
from harness.plan import FORWARD, FULL, LORA, Pass, PlannedStep, look, rows
from harness.planner import Planner
from harness.recipe import Recipe
from harness.token_counts import Characters, Counter, TokenCounts

ROOT = Path(__file__).parent.parent / "experiments"
PAIRS = "political_stance_race_pairs"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = t.build("llama", max_position_embeddings=1024, num_hidden_layers=2)
    return t.save(made, tmp_path_factory.mktemp("base"), chat=True)


@pytest.fixture(autouse=True)
def one_gigaflop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose rate is known."""
    monkeypatch.setattr(costs, "rate", lambda dtype: 1e9)
    monkeypatch.setattr("harness.plan_view.rate", lambda dtype: 1e9)


def finished(folder: Path, kind: str, seconds: float, **spec: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"kind": kind, "spec": spec, "seconds": seconds}))


def dry(path: Path, out: Path, *more: str) -> Any:
    return CliRunner().invoke(main, ["run", str(path), "--out", str(out), "--dry-run", *more])


def planned(name: str, model: str, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """A packaged file's plan, on another model."""
    raw = {**yaml.safe_load((ROOT / f"{name}.yaml").read_text()), "model": model, **changes}
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(raw))
    result = dry(path, tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def folders(plan: dict[str, Any]) -> list[str]:
    return [step["folder"] for row in plan["rows"] for step in row["steps"]]


def test_operations_per_parameter_are_2_to_read_4_in_lora_and_6_in_full(model: str):
    pairs = [{"prompt": "abc", "completion": "de"}]  # <user>abc<eos><bot> is 6 tokens of the tiny tokenizer, de is 2
    planner = Planner(model)
    for mode, flops in (("lora", 4), ("full", 6)):
        step = planner.tuned("tune", "tune", Training(pairs, Recipe(mode=mode, epochs=3)), 0)
        assert (step.tokens, step.work) == (24, 24 * flops)
    assert (FORWARD, LORA, FULL) == (2, 4, 6)


def test_parameters_are_those_that_are_multiplied(model: str, folder: Any):
    hidden, wide, layers, vocabulary = t.HIDDEN, t.INTERMEDIATE, 2, t.VOCAB
    attention = 2 * hidden * hidden + 2 * hidden * 16  # two heads of keys and values, 8 wide
    block = attention + 3 * hidden * wide + 2 * hidden
    cost = ModelCost("tiny", model)
    assert cost.parameters == layers * block + hidden + hidden * vocabulary  # the head, and not the embeddings
    assert cost.seconds(10, "float32") == pytest.approx(10 * cost.parameters / (1e9 * costs.EFFICIENCY))
    ends = 2 * (hidden + hidden) + 2 * (hidden + 16) + 3 * (hidden + wide)  # in and out of the seven maps of a block
    more, less = (cost.adapter(Recipe(rank=rank)) for rank in (3, 2))
    assert more is not None and less is not None and more - less == 4 * layers * ends


@pytest.mark.parametrize(
    ("name", "count"),
    [("org/Model-8B", 8e9), ("org/Qwen2.5-0.5B-Instruct", 5e8), ("org/x-135M", 1.35e8), ("a/b", None)],
)
def test_a_model_that_is_elsewhere_is_counted_by_its_name(name: str, count: float | None):
    assert ModelCost(name, None).parameters == count


def test_what_options_share_counts_once_on_vllm():
    requests = [([1, 2, 3], [4]), ([1, 2, 3], [5, 6]), ([7], [8])]
    for shares, expected in ((True, 3 + 1 + 4), (False, 3 + 3 + 1 + 4)):
        counter = Counter(None, shares)
        counter.score_continuations(requests)
        assert counter.tokens == expected
    counter.generate([[1, 2]], 48, [])
    counter.score_choices([([1, 2, 3], [4, 5])])
    assert counter.tokens == expected + 50 + 3


def test_a_measurement_is_counted_on_the_requests_that_it_asks(model: str):
    from harness.engines import Settings
    from harness.engines.torch import TorchEngine
    from harness.measure import measure

    asked = Asked((PAIRS,), 3)
    engine: Any = TorchEngine.from_folder(model, Settings(dtype="float32", max_length=1024))
    sent: list[int] = []
    score = engine.score_continuations
    engine.score_continuations = lambda some: sent.extend(len(c) + len(a) for c, a in some) or score(some)
    _, samples = measure(engine, asked)
    assert Planner(model).counts.asked(asked, "torch") == (len(samples), sum(sent))


def test_without_a_tokenizer_four_characters_are_a_token():
    assert len(Characters()("nine char")["input_ids"]) == 3
    counts = TokenCounts(None, "auto")
    documents, tokens = counts.asked(Asked((PAIRS,), 3), "torch")
    assert not counts.exact and documents > 0 and tokens > 10 * documents


def test_what_lies_in_a_folder_is_there_begun_or_made_otherwise(tmp_path: Path):
    step = PlannedStep("a", "measure", "03-a", spec={"limit": 4, "tasks": ("x",)})
    assert look(step, tmp_path).state == "to do"
    (tmp_path / "03-a").mkdir()
    assert look(step, tmp_path).state == "begun"
    (tmp_path / "03-a").rmdir()
    finished(tmp_path / "02-a", "measure", 5, limit=4, tasks=["x"])  # a step before it was not needed
    assert look(step, tmp_path).seconds == 5
    finished(tmp_path / "03-a", "measure", 6, limit=5, tasks=["x"])
    assert look(step, tmp_path).differs == "limit: 5 there, 4 now"
    (tmp_path / "03-a" / "manifest.json").write_text("{")
    assert look(step, tmp_path).state == "made otherwise"


def test_finished_runs_replace_the_arithmetic_first_of_the_row_then_of_the_kind(tmp_path: Path):
    def step(name: str, folder: str, kind: str = "tune", tokens: float = 10) -> PlannedStep:
        return PlannedStep(name, kind, folder, passes=(Pass(tokens),))

    for n, seconds in enumerate((4, 6, 30)):
        finished(tmp_path / f"a{n}", "tune", seconds)
    steps = [*(step("a", f"a{n}") for n in range(4)), step("b", "b", tokens=30), step("c", "c", "localize")]
    made = {row.name: row for row in rows(steps, tmp_path, lambda step: 99.0)}
    assert (made["a"].seconds, made["a"].rests_on, len(made["a"].left)) == (6, "finished runs", 1)
    assert made["b"].seconds == pytest.approx(18)  # the median pace, 6 s for 20 operations, times 60
    assert made["b"].rests_on == "finished tune runs"
    assert (made["c"].seconds, made["c"].rests_on) == (99, "arithmetic")


def test_answers_from_the_cache_say_nothing_about_time(tmp_path: Path):
    finished(tmp_path / "a", "measure", 0.5)
    manifest = tmp_path / "a" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "requests": {"asked": 1, "from_cache": 9}}))
    found = look(PlannedStep("a", "measure", "a"), tmp_path)
    assert (found.state, found.seconds) == ("there", None)


def test_the_demo_s_steps_have_the_names_that_its_run_gives_them(model: str):
    config = load_experiment(ROOT / "demo.yaml").model_copy(update={"model": model})
    measured = ["inhibited-5pct", "random-5pct-0", "random-5pct-1"]
    expected = ["measure-base", "measure-base-again", "tune", "measure-tuned", "localize"]
    expected += ["patch-none", "patch-general", "patch-specific", "patch-random-0"]
    expected += [f"{verb}-{name}" for name in measured for verb in ("tune", "measure")]
    steps = plan(config, Planner(model))
    assert [step.folder for step in steps] == [f"{n:02d}-{name}" for n, name in enumerate(expected, 1)]
    patched = [step for step in steps if step.name == "patch"]
    assert all(step.work == 4 * step.tokens for step in patched)  # donor and recipient read every token


def test_mitigations_localise_what_they_ask_for_in_each_cell(model: str, tmp_path: Path):
    train = {"topics": ["race"], "sides": ["left"], "seeds": [3], "questions": 4}
    listed = [
        {"use": "inhibitft", "label": "InhibitFT 5%", "options": {"share": 0.05}},
        {"use": "hold_normalized", "label": "normalised", "options": {"share": 0.05}},
        {"use": "hold_gradient", "label": "gradient", "options": {"share": 0.05}, "cells": ["race-left-*"]},
        {"use": "mix", "label": "mixed", "options": {"questions": 2}},
    ]
    seen, measure = {"race": ["science"]}, {"tasks": [PAIRS], "limit": 2, "engine": "torch"}
    made = planned("mitigations", model, tmp_path, train=train, seen=seen, measure=measure, mitigations=listed)
    slugs = ["plain", "inhibitft-5pct", "normalised", "gradient", "mixed"]
    cell = [*(f"tune-{s}" for s in slugs), "localize", "localize-normalized", "gradients"]
    cell += [f"measure-{s}" for s in slugs]
    assert folders(made) == ["base", "base-again", *(f"race-left-3/{name}" for name in cell)]
    documents = {row["name"]: row["steps"][0]["documents"] for row in made["rows"]}
    assert (documents["tune plain"], documents["tune mixed"]) == (4, 8)  # two questions more with both answers


def test_every_packaged_study_has_a_plan_and_writes_nothing(model: str, tmp_path: Path, stance_cache: Path):
    expected = {"localizers": 2 + 3 + 30 + 16, "knobe": 6, "culnig": 20, "neuronlens": 2 + 2 + 3 * 2 * 3}
    for name, count in expected.items():
        made = planned(name, model, tmp_path)
        assert len(folders(made)) == len(set(folders(made))) == count, name
        assert made["seconds_left"] > 0 and made["bytes_left"] > 0, name
        assert all(row["seconds_each"] is not None for row in made["rows"]), name
    assert not (tmp_path / "out").exists() and not stance_cache.exists()


def test_the_table_says_that_it_estimates_and_where_the_study_would_stop(model: str, tmp_path: Path):
    raw = {"name": "x", "model": model, "train": {"topics": ["race"]}, "measure": {"tasks": [PAIRS], "limit": 3}}
    path, out = tmp_path / "x.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(raw))
    finished(out / "01-measure-base", "measure", 7, limit=9)
    before = sorted(out.rglob("*"))
    result = dry(path, out)
    assert result.exit_code == 0, result.output
    for part in ("measure base-again", "tune", "estimates", "arithmetic", "would stop", "limit: 9 there, 3 now"):
        assert part in result.output
    assert sorted(out.rglob("*")) == before


def test_a_model_of_the_hub_is_planned_without_being_fetched(tmp_path: Path):
    train = {"topics": ["race"], "recipe": {"mode": "full"}}
    raw = {"name": "x", "model": "nobody/such-7B", "train": train, "measure": {"tasks": [PAIRS], "limit": 3}}
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(raw))
    result = dry(path, tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    tuned = next(row for row in made["rows"] if row["name"] == "tune")
    assert tuned["bytes_left"] == 14e9  # two bytes a parameter
    assert any("four characters" in sentence for sentence in made["about"])


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("demo", {"train": {"topics": ["tea"]}}, "no topic tea"),
        ("demo", {"modle": "x"}, "unknown key"),
        ("demo", {"model": "nosuch"}, "no model 'nosuch'"),
        ("mitigations", {"seen": {}}, "`seen` says nothing"),
        ("knobe", {"tune": {"topic": "tea"}}, "no topic 'tea'"),
        ("localizers", {"topic": "tea"}, "no topic 'tea'"),
        ("culnig", {"specific": ["atlantis"]}, "atlantis"),
        ("neuronlens", {"concepts": ["tea"]}, "no concept tea"),
    ],
)
def test_a_wrong_file_is_refused_as_in_a_run(name: str, changes: dict[str, Any], said: str, model: str, tmp_path: Path):
    raw = {**yaml.safe_load((ROOT / f"{name}.yaml").read_text()), "model": model, **changes}
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(raw))
    result = dry(path, tmp_path / "out")
    assert result.exit_code == 2 and said in result.output, result.output


def test_json_is_for_plans(tmp_path: Path):
    result = CliRunner().invoke(main, ["run", str(ROOT / "demo.yaml"), "--json"])
    assert result.exit_code == 2 and "--dry-run" in result.output
