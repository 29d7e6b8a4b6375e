from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InputError
from harness.measure import Asked, check_tasks
from harness.probes import choice_rows, open_rows, statement_rows
from harness.sources import as_topics, convert
from harness.topics import Topic, find_topics

pytestmark = pytest.mark.usefixtures("stance_cache")


def only(folder: Path) -> Topic:
    (topic,) = find_topics([folder]).values()
    return topic


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_ideoinst_becomes_tasks_of_its_own_name(tmp_path: Path) -> None:
    rows = [{"instruction": f"Question {n}?", "left": f"l{n}", "right": f"r{n}", "left_label": "x"} for n in range(6)]
    jsonl(tmp_path / "immigration.jsonl", *rows, rows[0])
    made = as_topics(tmp_path)
    topic = only(made)
    assert topic.task == "ideoinst_immigration" and topic.formats == ("pairs", "open")
    assert len(topic.split("measure")) == 2 and len(topic.split("train")) == 4
    check_tasks(Asked(("ideoinst_immigration", "ideoinst_immigration_open", "ideoinst"), folders=(made,)))
    assert as_topics(tmp_path) == made


def test_a_statement_list_is_denied_as_well_and_may_lean(tmp_path: Path) -> None:
    file = tmp_path / "My compass.txt"
    file.write_text(
        "# mine\nleft: The rich pay too little.\n\nRight:\tOrder matters most.\nright: Borders need guards.\n"
    )
    topic = only(as_topics(file))
    assert topic.task == "data_my_compass" and [s.agree for s in topic.statements] == ["left", "right", "right"]
    rows = statement_rows(topic)
    assert any("It is wrong to say: Order matters most." in r["prompt"] for r in rows)
    assert sum(r["values"][0] for r in rows) == 0 and sum(r["sign"] for r in rows) == 0


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_multiple_choice_keeps_no_answer_apart(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"survey.{suffix}"
    if suffix == "jsonl":
        jsonl(file, {"question": "How much?", "options": ["Less", "More", "Refused"], "values": [-1, 1, None]})
    else:
        file.write_text("question,options,values\nHow much?,Less|More|Refused,-1|1|\n")
    topic = only(as_topics(file))
    assert topic.formats == ("choices",) and choice_rows(topic)[0]["values"] == [-1, 1, None]


def test_paired_prompts_are_two_framings_of_one_item(tmp_path: Path) -> None:
    file = jsonl(
        tmp_path / "pairs.jsonl", {"prompt_a": "Defend the tax.", "prompt_b": "Attack the tax.", "topic": "tax"}
    )
    rows = open_rows(only(as_topics(file)))
    assert [(r["axes"]["framing"], r["prompt"]) for r in rows] == [
        ("left", "Defend the tax."),
        ("right", "Attack the tax."),
    ]
    assert len({r["item"] for r in rows}) == 1


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.txt", "Taxes are low.\n", r"line 1 names no side: 'Taxes are low.'. Expected `left: claim`"),
        ("a.txt", "# nothing\n", "holds no statement"),
        ("a.jsonl", '{"question": "q"}\n', "has keys question; expected a folder of"),
        ("a.jsonl", '{"question": "Which?", "options": ["x", "y"], "values": ["low", 1]}\n', "record 1 cannot be read"),
        (
            "a.jsonl",
            f'{{"question": "Which?", "options": ["x", "y"], "values": [{10**400}, 1]}}\n',
            "record 1 cannot be read",
        ),
        ("a.jsonl", '{"question": "Which?", "options": ["x", "y"], "values": [1]}\n', "2 options need as many values"),
        ("a.jsonl", '{"left": "x"}\n{"right": "y"}\n', "has keys left"),
        ("a.jsonl", '{"left": "Say it", "right": ""}\n', "record 1 lacks left or right"),
        ("a.csv", "question,options\n", "holds no records"),
        ("a.bin", "x", "holds no records"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        as_topics(file)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds nothing to ask"):
        as_topics(tmp_path / "missing")


def test_converted_files_are_ordinary_topics(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    jsonl(source / "race.jsonl", *({"instruction": f"Why {n}?", "left": "l", "right": "r"} for n in range(3)))
    made = convert(source, tmp_path / "out")
    assert {p.name for p in made.iterdir()} == {
        "ideoinst.yaml",
        "ideoinst_race.yaml",
        "ideoinst_race.items.jsonl",
    }
