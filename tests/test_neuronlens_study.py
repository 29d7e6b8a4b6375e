"""NeuronLens as a study: its tasks, how they are asked, its effects by hand, and the whole of it on a tiny model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny as t
import torch

from harness.analysis import read_settings, read_yaml
from harness.engines import lease
from harness.errors import InputError, ProofError
from harness.lmeval.roots import packaged_root
from harness.report.sheet import write_sheet
from harness.statistics import leave_one_out
from harness.topics import find_topics
from plugins.neuronlens import Ranges, salient
from plugins.neuronlens_concepts import ConceptTask, Example, Prompt, file_task, prompts, sides_task, topics_task
from plugins.neuronlens_diagnostics import fired, firing
from plugins.neuronlens_effects import BESIDE, Condition, ask, changes, levels, perplexity
from plugins.neuronlens_moments import Place, fit, load_moments, save_moments
from plugins.neuronlens_settings import Settings
from plugins.studies.neuronlens import ANALYSIS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def topics():
    return find_topics([packaged_root()])


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return t.save(t.build("llama", max_position_embeddings=512), tmp_path_factory.mktemp("longer"))


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    rows = [
        {"text": f"{word} {n}", "label": label} for label, word in (("Xa", "cat"), ("yb", "dog")) for n in range(18)
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def made(**changes) -> ConceptTask:
    examples = [Example(f"{c}{n}", f"{c} text {n}", c, "measure" if n > 3 else "train") for c in "ab" for n in range(6)]
    return ConceptTask(**{"cue": "Label", "names": {"a": "Ax", "b": "Bx"}, "examples": tuple(examples), **changes})


# Tasks


def test_the_packaged_items_are_tasks_and_their_splits_stay_apart(topics):
    task = topics_task(topics)
    assert list(task.names) == list(topics) and len(task.names) == 6
    assert {e.split for e in task.examples if e.id == topics["science"].split("train")[0].id} == {"train"}
    sides = sides_task(topics, "immigration")
    train, measured = ({e.id.split("/")[0] for e in sides.chosen(s, 999)} for s in ("train", "measure"))
    assert not train & measured and len(train) == 120 and len(measured) == 60
    assert sum(e.concept == "left" for e in sides.examples) == sum(e.concept == "right" for e in sides.examples) == 180


def test_chosen_texts_are_spread_over_a_concepts_own():
    assert [e.id for e in made().chosen("train", 2)] == ["a0", "a2", "b0", "b2"]
    assert [e.id for e in made().chosen("measure", 9)] == ["a4", "a5", "b4", "b5"]


def test_a_file_may_bring_its_splits_or_has_every_third_text_measured(tmp_path, labelled):
    task = file_task(labelled)
    assert [e.split for e in task.examples[:4]] == ["train", "train", "measure", "train"]
    assert task.names == {"Xa": "Xa", "yb": "yb"}
    path = tmp_path / "t.csv"
    lines = ["text,label,split"] + [
        f'"{k} a, {n}",{k},{"measure" if n == 2 else "train"}' for k in "pq" for n in range(3)
    ]
    path.write_text("\n".join(lines))
    task = file_task(path, "Kind")
    assert (task.cue, task.examples[0].text, task.examples[2].split) == ("Kind", "p a, 0", "measure")


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("t.txt", "", "expected .jsonl or .csv"),
        ("t.csv", "text,class\na,b\n", "has no column label"),
        ("t.jsonl", '{"text": "a"}', "entry 1, has text; expected"),
        ("t.jsonl", '{"text": "a", "label": "b"}', "needs two or more"),
        ("t.jsonl", '{"text": "a", "label": "b", "split": "test"}', "expected train or measure"),
        ("t.jsonl", '{"text": "a", "label": "b", "split": "train"}\n{"text": "c", "label": "b"}', "in all of them or"),
        ("t.jsonl", '{"text": "a", "label": "b"}\n{"text": "a", "label": "c"}', "has 1 texts to fit on and 0"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused(tmp_path, name, text, match):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=match):
        file_task(tmp_path / name)


def test_tasks_that_cannot_be_asked_are_refused(topics, tmp_path):
    with pytest.raises(InputError, match="no topic sports"):
        topics_task(topics, ["sports"])
    with pytest.raises(InputError, match="There is no file"):
        file_task(tmp_path / "none.csv")
    for names in (("Axe", "Ax"), ("Axe", "Axe")):
        with pytest.raises(InputError, match="cannot be told apart"):
            prompts(made(names=dict(zip("ab", names, strict=True))), made().examples, t.tokenizer())
    with pytest.raises(InputError, match="no chat template"):
        prompts(made(), made().examples, t.tokenizer(), chat=True)
    examples = list(made().examples)
    examples[5] = Example("a5", "A TEXT, 0!", "a", "measure")
    with pytest.raises(InputError, match=r"1 texts to measure \(first: a5\) stand among"):
        made(examples=tuple(examples))


def test_prompts_as_a_person_reads_them():
    tokenizer, examples = t.tokenizer(chat=True), made().examples
    plain, letters, chat = (
        prompts(made(), examples, tokenizer, answer, chatting)
        for answer, chatting in (("names", False), ("letters", False), ("letters", True))
    )
    assert tokenizer.decode(plain[0].ids) == "Text: a text 0\nLabel: " and plain[-1].right == 1
    assert tokenizer.decode(plain[0].options) == "AB"
    alike = prompts(made(names={"a": "Past", "b": "Paris"}), examples, tokenizer)
    assert tokenizer.decode(alike[0].ids).endswith("Label: Pa") and tokenizer.decode(alike[0].options) == "sr"
    assert tokenizer.decode(letters[1].ids) == "Label of the text:\nA. Bx\nB. Ax\n\nText: a text 1\nLabel: "
    # The options stand in the order of the concepts, whatever letter each one has.
    assert letters[0].options == letters[1].options[::-1] and letters[0].right == letters[1].right == 0
    assert tokenizer.decode(chat[1].options) == "BA"
    assert tokenizer.decode(chat[0].ids).startswith("<user>Label of the text:")


# Effects


class Fixed:
    """An engine of fixed log-probabilities."""

    def __init__(self, logs: list[list[float]]) -> None:
        self.logs = logs

    def score_choices(self, requests):
        return self.logs

    def score_continuations(self, requests):
        return [(-2.0 * len(answer), False) for _, answer in requests]


def test_an_answer_in_numbers():
    two = [Prompt(Example(str(n), "x", c, "measure"), [5], [1, 2], n) for n, c in enumerate("ab")]
    rows = ask(Fixed([[math.log(0.3), math.log(0.1)], [math.log(0.2), math.log(0.05)]]), two, {"n": [1, 2, 3]})
    assert rows["correct"].tolist()[:2] == [1.0, 0.0]
    assert rows["confidence"].tolist()[:2] == pytest.approx([0.75, 0.2])
    assert rows["mass"].tolist()[:2] == pytest.approx([0.4, 0.25])
    assert perplexity(rows) == pytest.approx(math.exp(2)) and math.isnan(perplexity(rows[:2]))


def frame(target: list[float], rest: list[float], nats: float = 1.0) -> pd.DataFrame:
    rows = [{"item": f"{c}{n}", "concept": c, "correct": v, "confidence": v / 2, "mass": 1.0}
            for c, values in (("a", target), ("b", rest)) for n, v in enumerate(values)]  # fmt: skip
    return pd.DataFrame([*rows, *({"item": f"n{k}", "concept": None, "nats": nats * k, "tokens": k} for k in (4, 8))])


def test_changes_equal_those_by_hand():
    base, engine = Condition(None, "none", None, "torch"), "torch"
    frames = {
        base: frame([1, 1, 1, 0], [1, 1, 0, 1, 1]),
        Condition("a", "range", None, engine): frame([0, 0, 0, 0], [1, 1, 0, 1, 0], 1.5),
        Condition("a", "range", 0, engine): frame([1, 1, 1, 0], [1, 1, 0, 0, 0], 1.25),
        Condition("a", "range", 1, engine): frame([1, 1, 0, 0], [1, 1, 0, 1, 0], 1.25),
        Condition("a", "full", None, engine): frame([0, 0, 0, 0], [0, 0, 0, 1, 0]),
        Condition("a", "full", 0, engine): frame([1, 1, 1, 0], [1, 1, 0, 1, 1]),
    }
    found = changes(frames).set_index(["mask", "measure", "part"])
    for part, change, net in (("target", -0.75, -0.625), ("complement", -0.2, 0.1), ("selectivity", -0.55, -0.725)):
        for measure, factor in (("correct", 1), ("confidence", 0.5)):
            row = found.loc[("range", measure, part)]
            assert (row["change"], row["net"]) == pytest.approx((factor * change, factor * net))
            assert row["low"] <= row["change"] <= row["high"] and row["net_low"] < row["net"] < row["net_high"]
    row = found.loc[("range", "log_perplexity", "neutral")]
    assert (row["base"], row["masked"], row["change"], row["net"]) == pytest.approx((1.0, 1.5, 0.5, 0.25))
    # Range beside full: 0.6 - 0.2 on the others; random dimensions (seed 0, which both have) 0.4 - 0.8.
    row = found.loc[(BESIDE, "correct", "complement")]
    assert (row["change"], row["net"]) == pytest.approx((0.4, 0.4 - (0.4 - 0.8)))
    table = levels(frames, ["a"]).set_index("condition")
    assert table.loc["range-a-random-1", "target correct"] == 0.5 and len(table) == 6


def test_a_mask_that_changes_nothing_has_no_effect():
    base = frame([1, 0, 1], [0, 1])
    names = [Condition(None, "none", None, "e"), Condition("a", "range", None, "e"), Condition("a", "range", 0, "e")]
    found = changes(dict.fromkeys(names, base))
    assert (found[["change", "low", "high", "net", "net_low", "net_high"]] == 0).all().all()


def test_the_interval_of_a_targets_change_is_the_item_bootstraps():
    rng = np.random.default_rng(0)
    before, after = (rng.integers(0, 2, 40).astype(float) for _ in range(2))
    names = [Condition(None, "none", None, "e"), Condition("a", "range", None, "e"), Condition("a", "range", 0, "e")]
    ordered = sorted(range(40), key=lambda n: f"a{n}")
    three = (frame(list(values), [1, 0]) for values in (before, after, before))
    found = changes(dict(zip(names, three, strict=True)))
    row = found[(found["measure"] == "correct") & (found["part"] == "target")].iloc[0]
    spread = (after - before)[ordered].std(ddof=1) / math.sqrt(40)
    assert (row["high"] - row["low"]) / (2 * 1.96 * spread) == pytest.approx(1, abs=0.1)
    assert leave_one_out(before).mean() == pytest.approx(before.mean())


# Diagnostics and storage


def test_firing_by_sequence_adds_up_to_firing(tiny):
    model = tiny("llama")
    texts = {"a": [t.tokens(n, seed=n) for n in (5, 9, 3)], "b": [t.tokens(n, seed=90 + n) for n in (4, 7)]}
    moments = fit(model, texts, Place.of(model, "m"))
    ranges = {c: Ranges(moments[c], salient(moments[c]), 1.0) for c in texts}
    found = fired(model, ranges, texts["a"], batch_tokens=10)
    lengths = torch.tensor([len(ids) for ids in texts["a"]])
    for name, (last, every) in found.items():
        wanted = firing(model, ranges[name], texts["a"]).overall
        assert float((every * lengths).sum() / lengths.sum()) == pytest.approx(wanted, abs=1e-6)
        alone = fired(model, ranges, [texts["a"][1]])[name]
        assert (float(last[1]), float(every[1])) == pytest.approx((float(alone[0]), float(alone[1])), abs=1e-6)
    with pytest.raises(InputError, match="No ranges"):
        fired(model, {}, texts["a"])


def test_moments_come_back_from_disk_as_they_were(tiny, tmp_path):
    model = tiny("llama")
    place = Place.of(model, "m")
    moments = fit(model, {"x/y": [t.tokens(3), t.tokens(4)], "z": [t.tokens(5), t.tokens(6), t.tokens(2)]}, place)
    save_moments(moments, tmp_path / "m.safetensors")
    again = load_moments(tmp_path / "m.safetensors", place, list(moments))
    for name, one in moments.items():
        assert again[name].count == one.count and again[name].place == place
        for field in ("mean", "sigma", "size", "cubes", "fourths"):
            assert torch.equal(getattr(again[name], field), getattr(one, field))


# The study


def small(longer: str, labelled: Path, **changes) -> Settings:
    given = {"name": "n", "model": longer, "task": "file", "file": labelled, "engine": "torch", "answered_right": False}
    return Settings(**{**given, "neutral": 2, "random_seeds": (0,), "concepts": ("Xa",), **changes})


def test_the_study_on_a_tiny_model(longer, labelled, stance_cache, tmp_path, monkeypatch):
    settings = small(longer, labelled, masks=("range", "full", "damp", "rest"))
    try:
        found = ANALYSIS.run(settings, tmp_path / "out")
        write_sheet(found, tmp_path / "page")
        folders = sorted(p.name for p in (tmp_path / "out").iterdir())
        assert folders[:3] == ["01-answers-to-fit-on", "02-fit", "03-measure-base-torch"] and len(folders) == 11
        page = (tmp_path / "page" / "index.html").read_text()
        assert "selectivity net of random dimensions" in page and "KS test" in page and page.count("<svg") == 2
        effect = json.loads((tmp_path / "out" / "04-measure-range-Xa" / "manifest.json").read_text())["largest_change"]
        assert effect > 0
        # Run again, everything is there: nothing is asked, no model is loaded, the page is the same.
        monkeypatch.setattr("plugins.studies.neuronlens.leased", None)
        monkeypatch.setattr("plugins.studies.neuronlens.load_model", None)
        again = ANALYSIS.run(settings, tmp_path / "out")
        assert again.sentences == found.sentences
        with pytest.raises(InputError, match="made otherwise"):
            ANALYSIS.run(small(longer, labelled, tau=1.0), tmp_path / "out")
    finally:
        lease.release()


def test_other_bounds_are_not_answered_from_the_cache(longer, labelled, stance_cache, tmp_path):
    rows = []
    try:
        for n, tau in enumerate((2.5, 0.5, 2.5)):
            settings = small(longer, labelled, tau=tau, masks=("range",), neutral=0)
            ANALYSIS.run(settings, tmp_path / str(n))
            rows.append(pd.read_parquet(tmp_path / str(n) / "04-measure-range-Xa" / "rows.parquet")["confidence"])
    finally:
        lease.release()
    assert not np.allclose(rows[0], rows[1]) and np.array_equal(rows[0], rows[2])


def test_too_few_right_answers_end_the_study_unless_all_are_fitted_on(longer, labelled, stance_cache, tmp_path):
    settings = small(longer, labelled, answered_right=True, least=60)
    try:
        with pytest.raises(InputError, match="`answered_right: false` to fit on all"):
            ANALYSIS.run(settings, tmp_path / "out")
    finally:
        lease.release()


def test_a_mask_that_changes_nothing_is_refused_before_answers_are_kept(
    longer, labelled, stance_cache, tmp_path, monkeypatch
):
    monkeypatch.setattr(Ranges, "replaced", lambda self, a, inside="zero": a)
    try:
        for _ in range(2):
            with pytest.raises(ProofError, match="changed none of"):
                ANALYSIS.run(small(longer, labelled, masks=("damp",), neutral=0), tmp_path / "out")
    finally:
        lease.release()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"concepts": ("Zz",)}, "no concept Zz to mask"),
        ({"task": "topics"}, "go together"),
        ({"task": "sides", "file": None}, "expected one topic"),
        ({"topics": ("science",)}, "brings its own labels"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(longer, labelled, tmp_path, changes, match):
    with pytest.raises(InputError, match=match):
        ANALYSIS.run(small(longer, labelled, **changes), tmp_path / "out")


def test_the_experiment_file_is_one_of_its_analysis():
    path = ROOT / "experiments" / "neuronlens.yaml"
    assert isinstance(read_settings(read_yaml(path), path, ANALYSIS.settings), Settings)
