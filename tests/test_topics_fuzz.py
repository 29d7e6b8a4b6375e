"""A thousand damaged topic files: each loads to a topic that can be asked, or is one line that names the file."""

from __future__ import annotations

import copy
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InputError
from harness.lmeval.roots import packaged_root
from harness.probes import ROWS
from harness.topics import find_topics, is_topic_file, load_topic
from harness.topics.new import new_topic

CASES, BATCHES = 1000, 10
Files = dict[str, bytes]
Chance = random.Random

BOMB = "".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}' if n else 'x'] * 9)}]\n" for n in range(12))
# Written in a YAML value's place, or as a line of its own.
YAML_ODD = [
    *(
        "~",
        "true",
        "5",
        "-0.5",
        ".nan",
        "-.inf",
        "1e999",
        "2024-13-45",
        "2024-01-01",
        "1:99:99:99",
        "[]",
        "{}",
        "''",
        "=",
        "<<",
    ),
    *(
        "&a x",
        "*a",
        "&a [*a]",
        "<<: *a",
        "<<: {title: x}",
        "? [a, b] : c",
        "? {=: items} : []",
        "? !!str {=: items} : [1]",
    ),
    *(
        "!!bool maybe",
        '!!int ""',
        '!!float ""',
        "!!timestamp x",
        '!!binary "a"',
        "!!null x",
        "!!set {a, b}",
        "!!omap [a: b]",
    ),
    *(
        "!!python/object/apply:os.getcwd []",
        "!function os.getcwd",
        "!function [a]",
        "!unknown x",
        "!!str [a]",
        "!!seq {a: b}",
    ),
    *(
        "9" * 5000,
        "0x" + "f" * 5000,
        "[" * 400,
        "{a: " * 300,
        "- " * 500,
        "x" * 9000,
        "!!pairs [a: b, a: c]",
        "!!float 9_9",
    ),
    *(
        '"\\ud800"',
        '"\\0"',
        '"\\x07\\u2028"',
        "---",
        "...",
        "%YAML 9.9",
        "%TAG ! tag:x:",
        "|",
        ">-",
        "@",
        "`",
        "\t- x",
        "#",
    ),
    *(
        "items: []",
        "path: /etc/passwd",
        "axes: {wording: []}",
        "axes: []",
        "items: ../x.jsonl",
        "control: true",
        "5: five",
    ),
    *(
        "class: !function harness.lmeval.tasks.TopicGroup",
        "group: neutral",
        BOMB,
        "items: " + "y" * 300,
        'items: "a\\0b"',
    ),
]
# Written in a JSON value's place.
JSON_ODD = [
    *(
        "null",
        "true",
        "5",
        "-1e999",
        "NaN",
        "[]",
        "{}",
        '""',
        '"x"',
        "9" * 5000,
        "1" + "0" * 400,
        "[" * 100_000,
        '{"a":' * 5000,
    ),
    *(
        "[" * 300 + "]" * 300,
        '"\\ud800"',
        '"\\u0000"',
        '"' + "x" * 9000 + '"',
        "'x'",
        "undefined",
        "//",
        '[["a"], 1]',
        "0x1",
    ),
    *('"left"', '"\\u2028\\u0085\\n"', "{1: 2}", '{"a": 1, "a": 2}', "-", '"\\x"', "1e5", '{"text": "A claim."}'),
]
VALUES: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        2**70,
        10**300,
        0.5,
        float("nan"),
        "",
        "x",
        "left",
        "stated",
        "train",
        [],
        {},
        [None],
        [[]],
        {"a": {}},
    ),
    *(
        "\ud800",
        "a\nb\x00\x1b[31m",
        "é" * 50,
        "x" * 8001,
        ["a", 5],
        [-1, 1],
        {"text": 5},
        [{"text": "A claim of mine."}],
    ),
    *([0.5] * 12, {"": ""}, "\u202e", ["x"] * 1000),
]
KEYS = [
    "id",
    "split",
    "left",
    "text",
    "reversed",
    "path",
    "__class__",
    "",
    "x" * 300,
    "a\nb",
    "\ud800",
    "é",
    "items",
    "values",
    "0",
]
CONTROL = [
    b"\0",
    b"\x1b[2J",
    b"\x85",
    b"\xff",
    b"\xc3",
    b"\xf0\x9f",
    b"\xed\xa0\x80",
    b"\xe2\x80\xa8",
    b"\r",
    b"\t",
    b"\xef\xbb\xbf",
]


def packaged(folder: Path) -> Files:
    """A packaged topic cut to a few rows a list, with choices."""
    topic = find_topics([packaged_root()])["science"]
    train = topic.split("train")[0].id
    kept = {topic.split("measure")[0].id, topic.split("measure")[1].id, train}
    choice = {"id": "sci-c1", "sub_issue": "x", "question": "Which one?", "options": ["A", "B"], "values": [-1, 1]}
    files = {topic.path.name: topic.path.read_bytes() + b"choices: science.choices.jsonl\n"}
    for name in ("items", "statements", "prompts"):
        beside = topic.path.with_suffix(f".{name}.jsonl")
        held = [line for line in beside.read_bytes().split(b"\n") if line]
        held = [line for line in held if json.loads(line)["id"] in kept] if name == "items" else held[:3]
        files[beside.name] = b"".join(line + b"\n" for line in held)
    for name, row in {"choices": choice, "neutral": {"item": train, "text": "It depends."}}.items():
        files[f"science.{name}.jsonl"] = json.dumps(row).encode() + b"\n"
    return files


def template(folder: Path) -> Files:
    """What `stance topics new` writes."""
    path = new_topic("climate", folder / "template")
    return {path.name: path.read_bytes()}


# --- ways to damage a file ------------------------------------------------------------------------------------------


def flipped(data: bytes, chance: Chance) -> bytes:
    broken = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
    return bytes(broken)


def cut(data: bytes, chance: Chance) -> bytes:
    start = chance.randrange(len(data))
    return data[:start] if chance.random() < 0.5 else data[:start] + data[start + chance.randint(1, 200) :]


def put_in(data: bytes, chance: Chance) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + chance.choice(CONTROL) * chance.randint(1, 3) + data[at:]


def lines(data: bytes, chance: Chance) -> bytes:
    held = data.split(b"\n")
    a, b = chance.randrange(len(held)), chance.randrange(len(held))
    way = chance.randrange(4)
    if way == 0:
        del held[a]
    elif way == 1:
        held.insert(b, held[a])
    elif way == 2:
        held[a], held[b] = held[b], held[a]
    else:
        held[a] = b" " * chance.randint(1, 9) + held[a]
    return b"\n".join(held)


def renamed(data: bytes, chance: Chance) -> bytes:
    keys = [
        b"id",
        b"split",
        b"left",
        b"right",
        b"text",
        b"agree",
        b"title",
        b"axes",
        b"order",
        b"items",
        b"task",
        b"options",
    ]
    return data.replace(
        chance.choice(keys), chance.choice(KEYS).encode("utf-8", "surrogatepass"), chance.choice([1, -1])
    )


def odd_yaml(data: bytes, chance: Chance) -> bytes:
    held = data.decode().split("\n")
    n, odd = chance.randrange(len(held)), chance.choice(YAML_ODD)
    key, colon, _ = held[n].partition(": ")
    held[n] = f"{key}: {odd}" if colon and chance.random() < 0.7 else f"{held[n]}\n{odd}"
    return "\n".join(held).encode("utf-8", "surrogatepass")


def odd_json(data: bytes, chance: Chance) -> bytes:
    held = data.decode().rstrip("\n").split("\n")
    n, odd = chance.randrange(len(held)), chance.choice(JSON_ODD)
    try:
        row = json.loads(held[n])
        row[chance.choice([*row, "new"])] = "HERE"
        held[n] = json.dumps(row).replace('"HERE"', odd)
    except (ValueError, TypeError, RecursionError):
        held[n] = odd
    return ("\n".join([*held, odd] if chance.random() < 0.2 else held) + "\n").encode("utf-8", "surrogatepass")


def other_values(data: bytes, chance: Chance) -> bytes:
    """Some row with another value, another key, or one fewer, at any depth."""
    held = data.decode().rstrip("\n").split("\n")
    n = chance.randrange(len(held))
    try:
        row = json.loads(held[n])
    except (ValueError, RecursionError):
        return data
    for _ in range(chance.randint(1, 3)):
        where: Any = row
        while isinstance(where, (dict, list)) and where:
            key = chance.choice(list(where) if isinstance(where, dict) else list(range(len(where))))
            if isinstance(where[key], (dict, list)) and where[key] and chance.random() < 0.6:
                where = where[key]
                continue
            if chance.random() < 0.3 and isinstance(where, dict):
                where[chance.choice(KEYS)] = where.pop(key)
            elif chance.random() < 0.2:
                del where[key]
            else:
                where[key] = copy.deepcopy(chance.choice(VALUES))
            break
    held[n] = json.dumps(row)
    return ("\n".join(held) + "\n").encode()


ANY: list[Callable[[bytes, Chance], bytes]] = [flipped, cut, put_in, lines, renamed]
YAML: list[Callable[[bytes, Chance], bytes]] = [*ANY, odd_yaml, odd_yaml, odd_yaml]
JSONL: list[Callable[[bytes, Chance], bytes]] = [*ANY, odd_json, odd_json, other_values, other_values, other_values]


def damaged(files: Files, chance: Chance) -> Files:
    """One to three damages to one or more of the files."""
    broken = dict(files)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        name = chance.choice([*broken, next(iter(broken))])
        try:
            broken[name] = chance.choice(YAML if name.endswith(".yaml") else JSONL)(broken[name] or b"\n", chance)
        except UnicodeDecodeError:
            broken[name] = flipped(broken[name], chance)
    return broken


def outcome(folder: Path, files: Files) -> str:
    """Write and load: the formats that can be asked, or how the file was refused."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    path = folder / next(iter(files))
    begun = time.perf_counter()
    is_topic_file(path)
    try:
        topic = load_topic(path)
    except InputError as error:
        said = str(error)
        assert str(folder) in said and "\n" not in said and said.isprintable() and len(said) < 4000, said[:4000]
        return "refused"
    finally:
        assert time.perf_counter() - begun < 3
    for kind in topic.formats:
        rows = ROWS[kind](topic)
        assert rows and json.dumps(rows, ensure_ascii=False).encode()
    return "loaded"


@pytest.mark.parametrize("batch", range(BATCHES))
def test_damaged_topics_load_or_are_refused_in_one_line(tmp_path: Path, batch: int) -> None:
    bases = [packaged(tmp_path), template(tmp_path)]
    outcomes: Counter[str] = Counter()
    for case in range(batch, CASES, BATCHES):
        chance = random.Random(case)
        files = damaged(chance.choice(bases), chance)
        try:
            outcomes[outcome(tmp_path / str(case), files)] += 1
        except (Exception, RecursionError) as error:
            raise AssertionError(f"case {case} in {tmp_path / str(case)}: {type(error).__name__}: {error}") from error
    # Damage that is always refused, or never, would show nothing.
    assert outcomes["refused"] >= 30 and outcomes["loaded"] >= 10, outcomes


def test_the_undamaged_files_load(tmp_path: Path) -> None:
    assert (
        outcome(tmp_path / "packaged", packaged(tmp_path)) == outcome(tmp_path / "new", template(tmp_path)) == "loaded"
    )


@pytest.mark.parametrize(
    "odd",
    [
        BOMB,
        "title: &a [*a]",
        "title: " + "[" * 100_000,
        "title: " + "{a: " * 50_000,
        "- " * 50_000,
        "title: 0x" + "f" * 100_000,
        "title: " + "9" * 100_000,
        "? !!str {=: items}\n: [1]",
        "title: !!python/object/apply:os.system [exit]",
    ],
    ids=lambda odd: odd[:24],
)
def test_bombs_and_depths_are_refused_at_once(tmp_path: Path, odd: str) -> None:
    files = template(tmp_path)
    text = files["climate.yaml"].decode().replace("title: Climate", odd)
    assert outcome(tmp_path / "case", {"climate.yaml": text.encode()}) == "refused"


@pytest.mark.parametrize(
    "odd", ["[" * 100_000, '{"id":' * 100_000, "[" * 900 + "]" * 900, "9" * 100_000], ids=lambda o: o[:8]
)
def test_deep_and_huge_json_is_refused_at_once(tmp_path: Path, odd: str) -> None:
    files = packaged(tmp_path)
    files["science.items.jsonl"] += b'{"id": "sci-x", "split": "measure", "question": ' + odd.encode() + b"}\n"
    assert outcome(tmp_path / "case", files) == "refused"


def test_a_folder_named_like_a_topic_and_a_dead_link_are_passed_over(tmp_path: Path) -> None:
    template(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "dead.yaml").symlink_to(tmp_path / "nowhere.yaml")
    assert list(find_topics([tmp_path])) == ["climate"]
