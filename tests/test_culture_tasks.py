"""The culture questions as lm-eval tasks, and the copying passages as data."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import tiny as t

from harness.engines import Settings
from harness.engines.torch import TorchEngine
from harness.errors import InputError
from harness.lmeval.roots import task_manager
from harness.measure import Asked, check_tasks, measure
from plugins.culnig_items import culture_folder, item, read_questions
from plugins.culnig_tasks import questions_of, score

COUNTRIES = ("brazil", "china", "egypt", "germany", "india", "japan", "mexico", "nigeria", "turkey", "usa")
TASKS = ("culture", "culture_controls", "culture_copying", "culture_noquestion")
COPYING = read_questions(culture_folder() / "copying" / "copying.jsonl")


@pytest.fixture(scope="module")
def loaded():
    manager = task_manager()
    return manager.load(manager.match_tasks(list(TASKS)))["tasks"]


def test_every_task_is_found_and_whole(loaded):
    controls = {f"culture_control_{name}": 40 for name in ("sentiment", "paraphrase", "grammar")}
    expected = {**{f"culture_{name}": 36 for name in COUNTRIES}, **controls}
    expected |= {"culture_copying": 120, "culture_noquestion": 360}
    assert {name: len(list(task.eval_docs)) for name, task in loaded.items()} == expected
    check_tasks(Asked(TASKS))


def test_the_control_form_asks_nothing_and_takes_countries_by_turns(loaded):
    plain = {doc["item"]: doc for name in COUNTRIES for doc in loaded[f"culture_{name}"].eval_docs}
    docs = list(loaded["culture_noquestion"].eval_docs)
    assert {doc["item"] for doc in docs} == set(plain)
    for doc in docs:
        full = plain[doc["item"]]
        assert full["prompt"].endswith("\n\n" + doc["prompt"]) and doc["prompt"].startswith("A. ")
        assert (doc["gold"], doc["labels"]) == (full["gold"], full["labels"])
    assert len({doc["sub_issue"] for doc in docs[:10]}) == 10


@pytest.mark.parametrize("chat", [False, True])
def test_what_is_measured_is_what_neurons_are_scored_by(chat):
    """The gold letter's share that lm-eval reports comes from the very position and tokens of the scorer's item."""
    tokenizer, model = t.tokenizer(chat), t.build("llama", max_position_embeddings=2048)
    engine = TorchEngine(model, tokenizer, Settings(max_length=2048))
    _, samples = measure(engine, Asked(("culture_copying", "culture_control_grammar"), limit=3, chat=chat))
    assert len(samples) == 6
    asked = {q.id: q for name in ("copying/copying", "controls/grammar") for q in read(name)}
    for row in samples.itertuples():
        question, values = asked[row.item], json.loads(row.values)
        one = item(question, tokenizer, chat)
        letters = [item(replace(question, answer=n), tokenizer, chat).gold for n in range(len(question.options))]
        shares = t.logits(model, one.ids)[-1][letters].softmax(-1)
        assert values["probability"] == pytest.approx(float(shares[question.answer]), abs=1e-4)
        assert values["acc"] == float(shares.argmax() == question.answer)


def read(name):
    return read_questions(culture_folder() / f"{name}.jsonl")


def test_metrics_by_hand():
    doc = {"gold": 1}
    logprobs = [(math.log(0.1), False), (math.log(0.3), False)]
    assert score(doc, logprobs) == {"acc": 1.0, "probability": pytest.approx(0.75)}
    assert score({"gold": 0}, logprobs) == {"acc": 0.0, "probability": pytest.approx(0.25)}
    far = score(doc, [(-1000.0, False), (-1001.0, False)])
    assert far == {"acc": 0.0, "probability": pytest.approx(1 / (1 + math.e))}


@pytest.mark.parametrize(
    "change, match",
    [({"forms": "options"}, "keys forms"), ({"form": "reversed"}, "form 'reversed'"), ({"items": []}, "items \\[\\]")],
)
def test_a_wrong_task_file_is_refused(change, match):
    with pytest.raises(InputError, match=match):
        questions_of({"task": "culture_x", "items": "usa.jsonl", **change}, culture_folder())


def test_copying_names_the_answer_in_its_passage():
    names = {q.country for q in COPYING}
    assert len(names) == 10 and set(Counter(q.country for q in COPYING).values()) == {12}
    first = 0
    for q in COPYING:
        found = [name for name in names if name in q.text]
        listed = [next(name for name in names if name in option) for option in q.options]
        assert len(found) == 2 and q.country in found and set(found) <= set(listed)
        assert listed[q.answer] == q.country and len(set(listed)) == 4
        first += min(found, key=q.text.index) == q.country
    assert first == 60  # the country that is named first is right half the time
    assert set(Counter((q.country, q.answer) for q in COPYING).values()) == {3}
    assert {q.country for q in COPYING[:10]} == names


def test_no_text_stands_twice():
    texts = [q.text for q in COPYING]
    assert len(set(texts)) == len(texts)
