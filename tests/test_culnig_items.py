"""Questions as prompts and items: the letter's token is the one lm-eval scores."""

from __future__ import annotations

import json

import pytest
import tiny as t

from harness.engines import Settings
from harness.engines.torch import TorchEngine
from harness.errors import InputError
from harness.lmeval.model import EngineLM
from harness.lmeval.roots import packaged_root
from harness.topics import load_topic
from plugins.culnig_items import Question, culture_folder, item, items, read_questions, stance_items, stance_questions

ASKED = Question("x-1", "food", "From what is soup made?", ("Water", "Sand", "Glass", "Wool"), 2)


def test_the_prompt_and_its_control_form():
    assert ASKED.prompt == "From what is soup made?\n\nA. Water\nB. Sand\nC. Glass\nD. Wool\n\nAnswer:"
    control = ASKED.without_text()
    assert control.prompt == "A. Water\nB. Sand\nC. Glass\nD. Wool\n\nAnswer:"
    assert (control.options, control.answer, control.labels) == (ASKED.options, 2, ["A", "B", "C", "D"])


@pytest.mark.parametrize("chat", [False, True])
def test_items_are_cut_where_lm_eval_cuts(tiny, chat):
    tokenizer = t.tokenizer(chat)
    lm = EngineLM(TorchEngine(tiny("llama"), tokenizer, Settings(max_length=64)))
    context = lm.apply_chat_template([{"role": "user", "content": ASKED.prompt}]) if chat else ASKED.prompt
    found = item(ASKED, tokenizer, chat)
    for label in ASKED.labels:
        before, letter = lm._encode_pair(context, label if chat else f" {label}")
        assert found.ids == before + letter[:-1]
        assert (found.gold == letter[-1]) is (label == "C")


def test_letters_without_a_token_of_their_own_are_refused():
    class Blind:
        bos_token = None

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [5] * len(text)}

    with pytest.raises(InputError, match="tells them apart"):
        item(ASKED, Blind(), False)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"answer": 4}, "answer 4"),
        ({"options": ["a", "a"]}, "no two the same"),
        ({"options": ["a"]}, "1 options"),
        ({"answer": True}, "counted from 0"),
        ({"more": 1}, "expected"),
    ],
)
def test_broken_records_are_named(tmp_path, change, match):
    row = {"id": "1", "field": "f", "question": "Q?", "options": ["a", "b", "c"], "answer": 0}
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, **change}) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"record 2.*{match}"):
        read_questions(path)


def test_every_packaged_question_becomes_an_item():
    tokenizer = t.tokenizer()
    for path in sorted(culture_folder().rglob("*.jsonl")):
        made = items(read_questions(path), tokenizer, chat=False)
        assert len(made) >= 36 and all(tokenizer.decode([one.gold]) in "ABCD" for one in made)


def test_stance_items_cross_the_orders_and_use_training_items_alone():
    topic = load_topic(packaged_root() / "political_stance" / "race.yaml")
    asked = {side: stance_questions([topic], side, limit=3) for side in ("left", "right")}
    train = topic.split("train")[:3]
    assert [one.text for one in asked["left"]] == [row.question for row in train for _ in range(2)]
    for side, questions in asked.items():
        assert [one.options[one.answer] for one in questions] == [getattr(row, side) for row in train for _ in range(2)]
        assert [one.answer for one in questions] == ([0, 1] if side == "left" else [1, 0]) * 3
    for one, other in zip(asked["left"], asked["right"], strict=True):
        assert one.prompt == other.prompt and {one.answer, other.answer} == {0, 1}


def test_stance_items_in_both_forms():
    topic, tokenizer = load_topic(packaged_root() / "political_stance" / "race.yaml"), t.tokenizer()
    asked = stance_items([topic], "right", tokenizer, False, 2)
    control = stance_items([topic], "right", tokenizer, False, 2, question=False)
    assert [one.gold for one in asked] == [one.gold for one in control]
    for one, bare in zip(asked, control, strict=True):
        assert len(bare.ids) < len(one.ids) and one.ids[-len(bare.ids) :] == bare.ids
    assert len(stance_items([topic, topic], "left", tokenizer, False, 2)) == 8
    for side, limit, match in (("middle", 1, "side is"), ("left", 0, "limit is")):
        with pytest.raises(InputError, match=match):
            stance_items([topic], side, tokenizer, False, limit)
    bare_topic = topic.model_copy(update={"items": ()})
    with pytest.raises(InputError, match="no items with split: train"):
        stance_items([bare_topic], "left", tokenizer, False)
