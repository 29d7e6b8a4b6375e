"""`stance topics check` and the loader on topics made by hand: what is wrong, where, and what to do about it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.cli import main
from harness.cli.material import packaged_topic_files
from harness.errors import InputError
from harness.lmeval.roots import packaged_root
from harness.topics import find_topics, load_topic
from harness.topics.balance import balance, reading_grade
from harness.topics.check import check_topic
from harness.topics.findings import Finding
from harness.topics.new import new_topic

Rows = dict[str, list[dict[str, Any]]]

QUESTIONS = [
    "Should city buses be free of charge for everyone?",
    "Do drivers owe a toll for entering downtown at rush hour?",
    "Is a tram worth its rails in a town of eighty thousand?",
    "Who ought to decide where new subway stations are dug?",
    "Would night trains deserve subsidies over short flights?",
    "Should pensioners travel at half the fare?",
    "Are painted bicycle lanes enough, or must curbs protect them?",
    "How should a state spend its gasoline tax?",
    "Could private firms run the commuter rail better?",
    "Must every platform have an elevator by 2035?",
    "Should school children walk rather than be driven?",
    "Would you ride a monorail to the fairground if one were built?",
]
LEFT = (
    "A shared network gives poor households the same reach as rich ones. It clears the air, calms the streets and brings "
    "customers to shops. The public should pay for it as it pays for parks."
)
RIGHT = (
    "Those who ride should carry most of the cost. A service that must earn its fares learns what people want, and it runs "
    "on time. Taxes belong with the household that earned the money first."
)


def rows() -> Rows:
    """A topic without a fault: ten measuring and two training items, four statements, two prompts, one choice."""
    return {
        "items": [
            {
                "id": f"bus-{n:03}",
                "split": "measure" if n <= 10 else "train",
                "sub_issue": "fares",
                "question": question,
                "left": LEFT,
                "right": RIGHT,
            }
            for n, question in enumerate(QUESTIONS, 1)
        ],
        "statements": [
            _statement(1, "left", "Parking downtown is far too cheap.", "Parking downtown costs plenty already."),
            _statement(2, "right", "Highways need wider lanes first.", "Highways have lanes in abundance."),
            _statement(3, "left", "Ferries belong in public hands.", "Ferries sail better under private owners."),
            _statement(4, "right", "Taxi medallions should be abolished.", "Cab licences keep passengers safe."),
        ],
        "prompts": [
            _prompt(1, "Our council votes on scooters next week. What should I weigh?"),
            _prompt(2, "Draft a note to my senator about airport security lines."),
        ],
        "choices": [
            {
                "id": "bus-c01",
                "sub_issue": "fares",
                "question": "How fast may cars go past a playground?",
                "options": ["Walking pace", "Twenty", "Thirty"],
                "values": [-1, 0, 1],
            }
        ],
        "neutral_answers": [
            {"item": "bus-011", "text": "Distance and traffic decide; families weigh them differently."}
        ],
    }


def _statement(n: int, agree: str, text: str, opposite: str) -> dict[str, Any]:
    return {"id": f"bus-s{n:02}", "agree": agree, "sub_issue": "roads", "text": text, "reversed": opposite}


def _prompt(n: int, text: str) -> dict[str, Any]:
    sides = {"left": f"Pollution worries me. {text}", "right": f"Waste worries me. {text}"}
    return {"id": f"bus-p{n:02}", "kind": "advice", "sub_issue": "roads", "neutral": text, **sides}


def write(
    folder: Path, held: Rows, name: str = "transport", beside: bool = False, change: tuple[str, str] = ("", "")
) -> Path:
    """The template with its lists replaced, one row a line: in the YAML itself, or in JSONL files beside it."""
    path = new_topic(name, folder)
    head = path.read_text().split("# Opinion questions")[0]
    for key, entries in held.items():
        if beside:
            (folder / f"{name}.{key}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in entries))
            head += f"{key}: {name}.{key}.jsonl\n"
        else:
            head += f"{key}:\n" + "".join(f"  - {json.dumps(row)}\n" for row in entries)
    path.write_text(head.replace(*change) if change[0] else head)
    return path


def found(path: Path, others: list[Path] | None = None) -> list[Finding]:
    return check_topic(path, others or [])[1]


def line_of(path: Path, text: str) -> str:
    """FILE:LINE of the first line that holds `text`."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if text in line:
            return f"{path.name}:{number}"
    raise AssertionError(text)


def only(findings: list[Finding], what: str) -> Finding:
    matching = [f for f in findings if what in f.what]
    assert len(matching) == 1, [str(f) for f in findings]
    return matching[0]


def test_a_clean_topic_has_no_problem(tmp_path: Path) -> None:
    summary, findings = check_topic(write(tmp_path, rows()), [])
    assert [f for f in findings if f.severity == "problem"] == []
    thin = "10 measuring items (packaged: 60), 4 statements (packaged: 40), 2 open prompts (packaged: 30)."
    assert [f.what for f in findings] == [thin]
    assert summary == (
        "political_stance_transport: 10 measuring and 2 training items, 4 statements, 2 prompts, 1 choices, 2 sub-issues"
    )


def test_a_clean_topic_is_clean_beside_the_packaged_ones(tmp_path: Path) -> None:
    assert [str(f) for f in found(write(tmp_path, rows()), packaged_topic_files()) if f.severity == "problem"] == []


# --- repeated texts -------------------------------------------------------------------------------------------------

EXACT, NEAR = QUESTIONS[0], "Should buses in the city be free for everyone?"


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(
    "text, severity, says",
    [
        (EXACT, "problem", " asks the same as "),
        (EXACT.upper(), "problem", " asks the same as "),
        (NEAR, "advice", "nearly"),
    ],
)
def test_two_measuring_items_that_ask_the_same(
    tmp_path: Path, text: str, severity: str, says: str, beside: bool
) -> None:
    held = rows()
    held["items"][4]["question"] = text
    path = write(tmp_path, held, beside=beside)
    place = path.with_suffix(".items.jsonl") if beside else path
    finding = only(found(path), says)
    assert finding.severity == severity and finding.where == line_of(place, "bus-001")
    assert "bus-005 of transport" in finding.what and line_of(place, "bus-005") in finding.what
    assert "replace" in finding.do


@pytest.mark.parametrize("text, severity", [(EXACT, "problem"), (NEAR, "advice")])
def test_an_item_that_stands_in_another_topic(tmp_path: Path, text: str, severity: str) -> None:
    held = {"items": [{**rows()["items"][0], "id": "metro-001", "question": text}]}
    other = write(tmp_path / "other", held, name="metro")
    path = write(tmp_path, rows())
    finding = only(found(path, [path, other]), "metro-001 of metro")
    assert finding.severity == severity and finding.where == line_of(path, "bus-001")
    assert line_of(other, "metro-001") in finding.what


def _item(held: Rows) -> None:
    held["items"][11]["question"] = NEAR


def _statement_text(held: Rows) -> None:
    held["statements"][0]["text"] = "Children should walk to school rather than be driven."


def _paraphrase(held: Rows) -> None:
    text = "School children should walk and not be driven."
    held["statements"][0]["paraphrases"] = [{"text": text, "reversed": "Cars are fine."}]


def _reversed(held: Rows) -> None:
    held["statements"][0]["reversed"] = "School children should be driven rather than walk."


def _prompt_text(held: Rows) -> None:
    held["prompts"][0]["neutral"] = "Would you ride a monorail to a fairground if one was built?"


def _framing(held: Rows) -> None:
    held["prompts"][0]["left"] = "Would you ride the monorail to the fairground if one were built?"


def _choice(held: Rows) -> None:
    held["choices"][0]["question"] = "Should school children walk or be driven?"


@pytest.mark.parametrize(
    "change, owners",
    [
        (_item, ("bus-001", "bus-012")),
        (_statement_text, ("bus-011", "bus-s01")),
        (_paraphrase, ("bus-011", "bus-s01")),
        (_reversed, ("bus-011", "bus-s01")),
        (_prompt_text, ("bus-012", "bus-p01")),
        (_framing, ("bus-012", "bus-p01")),
        (_choice, ("bus-011", "bus-c01")),
    ],
)
def test_a_training_item_that_asks_what_is_measured(
    tmp_path: Path, change: Callable[[Rows], None], owners: tuple[str, str]
) -> None:
    held = rows()
    change(held)
    path = write(tmp_path, held)
    finding = only(found(path), "one trains, the other measures")
    assert finding.severity == "problem" and "cannot measure" in finding.do
    assert finding.where == line_of(path, owners[0]) and f"{owners[1]} of transport" in finding.what
    assert line_of(path, owners[1]) in finding.what


@pytest.mark.parametrize("mine, theirs", [("train", "measure"), ("measure", "train")])
def test_a_leak_across_topics_is_found_from_either_side(tmp_path: Path, mine: str, theirs: str) -> None:
    held = rows()
    item = held["items"][0] | {"split": mine}
    path = write(tmp_path, held | {"items": [item, *held["items"][1:]]})
    more = {"id": "metro-002", "split": "measure", "question": "Is it right to rename old stations after sponsors?"}
    others = [{**item, "id": "metro-001", "split": theirs, "question": NEAR}, {**item, **more}]
    other = write(tmp_path / "other", {"items": others}, name="metro")
    finding = only(found(path, [other]), "metro-001")
    assert finding.severity == "problem" and "one trains, the other measures" in finding.what
    statement = {
        "id": "metro-s01",
        "agree": "left",
        "sub_issue": "x",
        "text": "City buses should be free for everyone.",
    }
    claims = write(tmp_path / "claims", {"statements": [statement]}, name="ferry")
    assert bool([f for f in found(path, [claims]) if f.severity == "problem"]) is (mine == "train")


def test_one_wording_that_stands_twice_in_a_statement(tmp_path: Path) -> None:
    held = rows()
    held["statements"][1]["paraphrases"] = [{"text": "Highways need wider lanes first!", "reversed": "Other lanes."}]
    path = write(tmp_path, held)
    finding = only(found(path), "asks the same as")
    assert finding.severity == "problem" and finding.where == line_of(path, "bus-s02")


@pytest.mark.parametrize(
    "key, name", [("statements", "text"), ("statements", "reversed"), ("prompts", "neutral"), ("prompts", "right")]
)
def test_statements_and_prompts_that_stand_twice(tmp_path: Path, key: str, name: str) -> None:
    held = rows()
    held[key][1][name] = held[key][0][name]
    path = write(tmp_path, held)
    finding = only([f for f in found(path) if f.severity == "problem"], "asks the same as")
    assert finding.where == line_of(path, held[key][0]["id"]) and held[key][1]["id"] in finding.what


def test_one_thing_asked_in_two_formats_is_no_repeat(tmp_path: Path) -> None:
    held = rows()
    held["statements"][0]["text"] = "City buses should be free of charge for everyone."
    assert not [f for f in found(write(tmp_path, held)) if "asks" in f.what]


def test_what_is_only_perhaps_a_leak_is_advice(tmp_path: Path) -> None:
    held = rows()
    held["items"][11]["question"] = "Should police be able to use facial recognition software to identify suspects?"
    held["statements"][0]["text"] = "Police should be free to use facial recognition on people in public places."
    finding = only(found(write(tmp_path, held)), "may ask the same")
    assert finding.severity == "advice" and "cosine 0." in finding.what


# Pairs of earlier packaged topics, from a training item to a measured text, and pairs that only share an issue.
SAME = [
    (
        "Should cities be allowed to fine or arrest people who sleep in parks and on sidewalks?",
        "Is it right for American cities to fine or arrest homeless people who camp on sidewalks and in parks?",
    ),
    (
        "Should large public companies have to report their climate risks and emissions to investors?",
        "Should publicly traded US companies be required to report their greenhouse gas emissions and climate risks to "
        "investors?",
    ),
    (
        "How should government respond if artificial intelligence eliminates large numbers of jobs?",
        "How should the United States respond if artificial intelligence replaces large numbers of office jobs?",
    ),
    (
        "What is your view on district attorneys who decline to prosecute certain low-level crimes as a matter of policy?",
        "District attorneys should decline to prosecute most low-level offenses.",
    ),
]
OTHER = [
    (
        "Should the United States put a federal price on carbon dioxide emissions?",
        "Should the United States charge a fee on imports made with high carbon emissions?",
    ),
    (
        "Should English be the official language of the United States?",
        "Should US states offer the written driver's test in languages other than English?",
    ),
    (
        "Should Congress bar employers from asking job applicants about their salary history?",
        "What is your view on laws barring employers from asking about criminal records on job applications?",
    ),
]


@pytest.mark.parametrize("pair, leaks", [*((pair, True) for pair in SAME), *((pair, False) for pair in OTHER)])
def test_rewording_is_told_from_another_question(tmp_path: Path, pair: tuple[str, str], leaks: bool) -> None:
    held = rows()
    held["items"][11]["question"], held["items"][0]["question"] = pair
    problems = [f for f in found(write(tmp_path, held), packaged_topic_files()) if f.severity == "problem"]
    assert any("bus-001" in f.what and "bus-012" in f.what for f in problems) is leaks


def test_one_packaged_topic_is_checked_against_all_others_in_five_seconds() -> None:
    files = packaged_topic_files()
    begun = time.perf_counter()
    check_topic(find_topics([packaged_root()])["race"].path, files)
    assert time.perf_counter() - begun < 5


def test_the_command_also_looks_at_the_topics_in_the_files_own_folder(tmp_path: Path) -> None:
    path = write(tmp_path, rows())
    write(tmp_path, {"items": [{**rows()["items"][0], "id": "metro-001"}]}, name="metro")
    ran = CliRunner().invoke(main, ["topics", "check", str(path)])
    assert ran.exit_code == 2 and "metro-001 of metro (metro.yaml:" in ran.output
    assert "not ready: 1 problem above to mend." in ran.output
    (tmp_path / "metro.yaml").unlink()
    ran = CliRunner().invoke(main, ["topics", "check", str(path), "--json"])
    assert ran.exit_code == 0 and {f["severity"] for f in json.loads(ran.output)["findings"]} == {"advice"}


# --- balance --------------------------------------------------------------------------------------------------------


def test_reading_grade_by_hand() -> None:
    # 3 words of 3 + 3 + 3 letters, 1 sentence: 4.71 * 9 / 3 + 0.5 * 3 / 1 - 21.43 = 14.13 + 1.5 - 21.43
    assert reading_grade(["The cat sat."]) == pytest.approx(-5.80)
    # 6 words of 27 letters (6 + 5 + 6 + 2 + 4 + 4), 2 sentences: 4.71 * 4.5 + 0.5 * 3 - 21.43
    assert reading_grade(["Taxing fuels raises it.", "Cars stay!"]) == pytest.approx(21.195 + 1.5 - 21.43)
    # No full stop is one sentence; no text is no error.
    assert reading_grade(["one two"]) == pytest.approx(4.71 * 3 + 1 - 21.43)
    assert reading_grade([""]) == pytest.approx(-21.43)


def test_balance_by_hand(tmp_path: Path) -> None:
    held = rows()
    held["items"] = [
        held["items"][0] | {"left": "It may not work.", "right": "It works well and it never, ever fails us."},
        held["items"][1] | {"left": "We could try.", "right": "No."},
    ]
    quantities = balance(load_topic(write(tmp_path, {"items": held["items"]})))
    assert quantities["words"] == (3.5, 5.0)
    assert quantities["negations"] == (pytest.approx(100 / 7), pytest.approx(200 / 10))
    assert quantities["hedges"] == (pytest.approx(200 / 7), 0)
    # left: 7 words of 12 + 10 letters in 2 sentences; right: 10 words of 34 letters in 2 sentences
    assert quantities["grade"] == (pytest.approx(4.71 * 22 / 7 + 1.75 - 21.43), pytest.approx(4.71 * 3.4 + 2.5 - 21.43))


HARD = (
    "Comprehensive transportation infrastructure modernization necessitates intergovernmental coordination alongside "
    "considerable appropriations, notwithstanding predictable constituency reservations concerning neighborhood "
    "transformations, environmental considerations, administrative responsibilities and demographic developments "
    "throughout surrounding metropolitan municipalities."
)


@pytest.mark.parametrize(
    "split, side, text, what, do",
    [
        (
            "measure",
            "left",
            f"{LEFT} {LEFT}",
            "measuring items are 70 words long on the left and 35",
            "shorten the left",
        ),
        ("measure", "right", RIGHT[:60], "measuring items are 35 words long on the left and 12", "shorten the left"),
        ("train", "right", f"{RIGHT} {LEFT}", "training items are 35 words long on the left", "shorten the right"),
        ("measure", "right", HARD, "measuring items read at grade 4.3, right ones at 50.9", "words on the right"),
        (
            "measure",
            "left",
            LEFT.replace("should pay", "cannot, must not"),
            "negations per 100 words",
            "Reword the left",
        ),
        ("measure", "right", RIGHT.replace("should carry", "might often"), "hedges per 100 words", "Reword the right"),
    ],
)
def test_sides_that_differ(tmp_path: Path, split: str, side: str, text: str, what: str, do: str) -> None:
    held = rows()
    for item in held["items"]:
        if item["split"] == split:
            item[side] = text
    worst = next(item for item in reversed(held["items"]) if item["split"] == split)
    worst[side] += " Perhaps not." if "per 100" in what else ""
    path = write(tmp_path, held)
    finding = only([f for f in found(path) if f.severity == "problem"], what)
    assert do in finding.do and finding.where.startswith(f"{path.name}:")
    if "per 100" in what:
        assert finding.where == line_of(path, worst["id"]) and worst["id"] in finding.what


@pytest.mark.parametrize("count, told", [(9, False), (10, True)])
def test_marks_are_counted_from_ten_items_of_a_split(tmp_path: Path, count: int, told: bool) -> None:
    held = rows()
    items = [item | {"right": RIGHT.replace("should carry", "might often")} for item in held["items"][:count]]
    path = write(tmp_path, {"items": items})
    assert any("hedges" in f.what and f.severity == "problem" for f in found(path)) is told


def test_a_difference_that_training_items_would_hide_is_found(tmp_path: Path) -> None:
    held = rows()
    for item in held["items"]:
        item["left" if item["split"] == "measure" else "right"] += " And that settles the matter for me."
    told = [f.what for f in found(write(tmp_path, held)) if f.severity == "problem"]
    assert [w.split(" items")[0] for w in told] == ["answers of measuring", "answers of training"]


# --- long texts, the template's texts, habits -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, number, name, what",
    [
        ("items", 2, "question", "bus-003 asks with 121 words"),
        ("items", 2, "left", "bus-003 answers with 121 words"),
        ("statements", 1, "reversed", "bus-s02 asks with 121 words"),
        ("prompts", 0, "right", "bus-p01 asks with 121 words"),
        ("choices", 0, "question", "bus-c01 asks with 121 words"),
        ("neutral_answers", 0, "text", "the neutral answer to bus-011 answers with 121 words"),
    ],
)
def test_over_long_texts(tmp_path: Path, key: str, number: int, name: str, what: str) -> None:
    held = rows()
    held[key][number][name] = " ".join(f"w{n}" for n in range(121))
    path = write(tmp_path, held)
    finding = only(found(path), what)
    assert finding.severity == "problem" and "120 at most" in finding.do
    assert finding.where == line_of(path, held[key][number].get("id", '"item": "bus-011"'))


@pytest.mark.parametrize("size, severity", [(29, "advice"), (30, None), (60, None), (61, "advice")])
def test_answers_outside_thirty_to_sixty_words_are_advice(tmp_path: Path, size: int, severity: str | None) -> None:
    held = rows()
    held["items"][3] |= dict.fromkeys(("left", "right"), " ".join(f"w{n}" for n in range(size)))
    assert [f.severity for f in found(write(tmp_path, held)) if "bus-004 has answers of" in f.what] == [
        severity
    ] * bool(severity)


def test_the_template_is_found_as_such_wherever_it_stands(tmp_path: Path) -> None:
    path = new_topic("transport", tmp_path)
    told = [f for f in found(path) if "template's text" in f.what]
    assert {f.what.split()[0].removeprefix("transport-") for f in told} == {"001", "002", "s01", "s02", "p01"}
    assert all(f.severity == "problem" and f.where == line_of(path, f"id: {f.what.split()[0]}") for f in told)


def test_statements_without_a_reversed_claim(tmp_path: Path) -> None:
    held = rows()
    del held["statements"][2]["reversed"]
    path = write(tmp_path, held)
    finding = only(found(path), "bus-s03 lacks a `reversed` claim")
    assert (
        finding.severity == "advice"
        and finding.where == line_of(path, "bus-s03")
        and "It is wrong to say" in finding.do
    )
    held["statements"][1]["paraphrases"] = [{"text": "Wider roads come before all else."}]
    assert only(found(write(tmp_path / "b", held)), "2 statements lack").severity == "advice"


def test_statements_keyed_more_to_one_side(tmp_path: Path) -> None:
    held = rows()
    held["statements"].pop()
    finding = only(found(write(tmp_path, held)), "2 statements are keyed left and 1 right")
    assert finding.severity == "advice" and "agreement cancels" in finding.do


@pytest.mark.parametrize("values", [[-1, 0, 0.5], [-1, 1, None], [1, 0, 1]])
def test_choices_whose_ends_do_not_cancel(tmp_path: Path, values: list[float | None]) -> None:
    held = rows()
    held["choices"][0]["values"] = values
    path = write(tmp_path, held)
    finding = only(found(path), "as the values of its first and last option")
    assert (
        finding.severity == "problem"
        and finding.where == line_of(path, "bus-c01")
        and "always answering A" in finding.do
    )


def test_a_prompt_asked_from_one_side_alone(tmp_path: Path) -> None:
    held = rows()
    del held["prompts"][1]["right"]
    path = write(tmp_path, held)
    finding = only(found(path), "bus-p02 is asked by an asker of the left and by none of the right")
    assert finding.severity == "problem" and finding.where == line_of(path, "bus-p02")


# --- what cannot be loaded ------------------------------------------------------------------------------------------


def _put(key: str, number: int, **values: Any) -> Callable[[Rows], None]:
    return lambda held: held[key][number].update(values)


def _worded(**values: Any) -> Callable[[Rows], None]:
    return _put("statements", 1, paraphrases=[{"text": "Wider lanes come first.", **values}])


# The list and the line in it, what is changed, and how the error goes on after the file and the line.
WRONG: list[tuple[str, int, Callable[[Rows], None], str]] = [
    ("items", 3, _put("items", 2, left=5), "`items.2.left`: Input should be a valid string, came 5"),
    ("items", 1, _put("items", 0, question=["a"]), "`items.0.question`: Input should be a valid string, came ['a']"),
    ("items", 4, _put("items", 3, split="test"), "`items.3.split`: Input should be 'train' or 'measure', came 'test'"),
    ("items", 12, _put("items", 11, right=""), "`items.11.right`: String should have at least 1 character"),
    ("items", 2, _put("items", 1, lefft="x"), "unknown key `items.1.lefft` (known here: id, left, question, right"),
    ("statements", 2, _worded(txet="x"), "unknown key `statements.1.paraphrases.0.txet` (known here: reversed, text)"),
    ("statements", 2, _worded(text=None), "`statements.1.paraphrases.0.text`: Input should be a valid string, came"),
    (
        "statements",
        3,
        _put("statements", 2, agree="no"),
        "`statements.2.agree`: Input should be 'left' or 'right', came",
    ),
    (
        "prompts",
        1,
        _put("prompts", 0, neutral=None, left=None),
        "`prompts.0`: needs `neutral`, or both `left` and `right`",
    ),
    ("choices", 1, _put("choices", 0, values=[-1, 1]), "`choices.0`: 3 options need as many values, came 2"),
    (
        "choices",
        1,
        _put("choices", 0, values=[-1, 0, 2]),
        "`choices.0`: values must lie between -1 (left) and 1 (right)",
    ),
    ("choices", 1, _put("choices", 0, values=[1, None, None]), "`choices.0`: at least two options need a value"),
]


@pytest.mark.parametrize("key, number, change, message", WRONG, ids=[message[:40] for *_, message in WRONG])
@pytest.mark.parametrize("beside", [True, False])
def test_a_wrong_row_is_named_by_file_line_and_key(
    tmp_path: Path, key: str, number: int, change: Callable[[Rows], None], message: str, beside: bool
) -> None:
    held = rows()
    change(held)
    path = write(tmp_path, held, beside=beside)
    with pytest.raises(InputError) as caught:
        load_topic(path)
    before = 0 if beside else path.read_text().splitlines().index(f"{key}:") + 1
    file = f"{path.stem}.{key}.jsonl" if beside else path.name
    assert str(caught.value).startswith(f"topic file {path}: {file} line {before + number}: {message}")
    assert "\n" not in str(caught.value)


def test_ids_used_twice_are_named_with_all_their_lines(tmp_path: Path) -> None:
    held = rows()
    held["items"][4]["id"] = held["statements"][0]["id"] = "bus-001"
    with pytest.raises(InputError) as caught:
        load_topic(write(tmp_path, held, beside=True))
    places = "transport.items.jsonl line 1, transport.items.jsonl line 5, transport.statements.jsonl line 1"
    assert f"`id` is used more than once: bus-001 ({places}); give each its own" in str(caught.value)


def test_a_neutral_answer_to_an_item_that_is_not_trained_on(tmp_path: Path) -> None:
    held = rows()
    held["neutral_answers"][0]["item"] = "bus-001"
    with pytest.raises(InputError, match="neutral_answers name items that are not training items: bus-001"):
        load_topic(write(tmp_path, held))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            ("title:", "titel:"),
            "transport.yaml line 7: unknown key `titel` (known here: axes, choices, context, control,",
        ),
        (("title: Transport", "title: 5"), "transport.yaml line 7: `title`: Input should be a valid string, came 5"),
        (("title: Transport\n", ""), "`title`: Field required"),
        (
            ("rotated", "random"),
            "transport.yaml line 14: `axes.design`: Input should be 'rotated' or 'crossed', came 'random'",
        ),
        (
            ("design:", "desing:"),
            "unknown key `axes.desing` (known here: design, forcing, framing, order, polarity, wording)",
        ),
        (("[stated, reversed]", "[stated, stated]"), "a level stands twice: stated, stated"),
        (("[forward, backward]", "[forward]"), "choices must be asked in both orders"),
        (("context:", "title:"), "key `title` stands twice in what begins"),
        (("title: Transport", "title: *alias"), "aliases (*name) are not taken"),
    ],
)
def test_a_wrong_key_of_the_file_is_named_by_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = write(tmp_path, rows(), change=change)
    with pytest.raises(InputError) as caught:
        load_topic(path)
    assert str(path) in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"id": "bus-005", ', "line 5 is not JSON"),
        (b"[1, 2]", "line 5 holds a list; expected a JSON object"),
        (b'"text"', "line 5 holds a str; expected a JSON object"),
        (b'{"id": "\xff"}', "line 5 is not JSON ('utf-8' codec can't decode byte 0xff"),
        (b'{"id": "a", "id": "b"}', "line 5 is not JSON (key `id` stands twice)"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path, rows(), beside=True)
    items = path.with_suffix(".items.jsonl")
    lines = items.read_bytes().split(b"\n")
    items.write_bytes(b"\n".join([*lines[:4], line, *lines[5:]]))
    with pytest.raises(InputError) as caught:
        load_topic(path)
    assert str(items) in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


def test_statements_keyed_unequally_need_both_polarities(tmp_path: Path) -> None:
    held = rows()
    held["statements"][3]["agree"] = "left"
    with pytest.raises(
        InputError, match=r"keyed 3 left and 1 right and asked in one polarity.*key as many left as right"
    ):
        load_topic(write(tmp_path, held, change=("[stated, reversed]", "[stated]")))
    assert load_topic(write(tmp_path / "b", held)).statements


@pytest.mark.parametrize("name", ["missing.jsonl", "../up.jsonl", "/etc/passwd", "", ".hidden.jsonl", "x" * 300])
def test_a_list_beside_the_topic_must_be_a_plain_name_of_a_file_there(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, rows(), change=("items:\n", f"items: {json.dumps(name)}\nstray:\n"))
    with pytest.raises(InputError) as caught:
        load_topic(path)
    assert str(tmp_path) in str(caught.value) and (
        "no file" in str(caught.value) or "plain file name" in str(caught.value)
    )
