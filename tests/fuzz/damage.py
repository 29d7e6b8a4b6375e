"""Ways to damage a file: bytes, lines, keys and values, trees of JSON and YAML, headers of safetensors, cells of Parquet."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import pandas as pd
import yaml

from harness.documents import UNREADABLE

Files = dict[str, bytes]
Chance = random.Random

BOMB = "".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}' if n else 'x'] * 9)}]\n" for n in range(12))
# fmt: off
# Written in a YAML value's place, or as a line of its own.
YAML_ODD = [
    "~", "true", "5", "-0.5", ".nan", "-.inf", "1e999", "2024-13-45", "2024-01-01", "1:99:99:99", "[]", "{}", "''", "=", "<<",
    "&a x", "*a", "&a [*a]", "<<: *a", "<<: {title: x}", "? [a, b] : c", "? {=: items} : []", "? !!str {=: items} : [1]",
    "!!bool maybe", '!!int ""', '!!float ""', "!!timestamp x", '!!binary "a"', "!!null x", "!!set {a, b}", "!!omap [a: b]",
    "!!python/object/apply:os.getcwd []", "!function os.getcwd", "!function [a]", "!unknown x", "!!str [a]", "!!seq {a: b}",
    "9" * 5000, "0x" + "f" * 5000, "[" * 400, "{a: " * 300, "- " * 500, "x" * 9000, "!!pairs [a: b, a: c]", "!!float 9_9",
    '"\\ud800"', '"\\0"', '"\\x07\\u2028"', "---", "...", "%YAML 9.9", "%TAG ! tag:x:", "|", ">-", "@", "`", "\t- x", "#",
    "items: []", "path: /etc/passwd", "axes: {wording: []}", "axes: []", "items: ../x.jsonl", "control: true", "5: five",
    "class: !function harness.lmeval.tasks.TopicGroup", "group: neutral", BOMB, "items: " + "y" * 300, 'items: "a\\0b"',
]
# Written in a JSON value's place.
JSON_ODD = [
    "null", "true", "5", "-1e999", "NaN", "[]", "{}", '""', '"x"', "9" * 5000, "1" + "0" * 400, "[" * 100_000,
    '{"a":' * 5000, "[" * 300 + "]" * 300, '"\\ud800"', '"\\u0000"', '"' + "x" * 9000 + '"', "'x'", "undefined", "//",
    '[["a"], 1]', "0x1", '"left"', '"\\u2028\\u0085\\n"', "{1: 2}", '{"a": 1, "a": 2}', "-", '"\\x"', "1e5",
    '{"text": "A claim."}', '"\\u202e"',
]
VALUES: list[Any] = [
    None, True, 0, -1, 2**70, 10**300, 0.5, float("nan"), float("inf"), 1e308, "", "x", "left", "stated", "train", [], {},
    [None], [[]], {"a": {}}, "\ud800", "a\nb\x00\x1b[31m", "é" * 50, "x" * 8001, ["a", 5], [-1, 1], {"text": 5},
    [{"text": "A claim of mine."}], [0.5] * 12, {"": ""}, "\u202e", ["x"] * 1000, "=1+1", "<script>", "{{ 7*7 }}",
    "../../x", "/dev/zero",
]
KEYS = [
    "id", "split", "left", "text", "reversed", "path", "__class__", "", "x" * 300, "a\nb", "\ud800", "é", "items", "values",
    "0", "role", "label",
]
CONTROL = [
    b"\0", b"\x1b[2J", b"\x85", b"\xff", b"\xc3", b"\xf0\x9f", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\r", b"\t",
    b"\xef\xbb\xbf",
]
# fmt: on


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
    keys = b"id split left right text agree title axes order items task options label role values".split()
    return data.replace(chance.choice(keys), _bytes(chance.choice(KEYS)), chance.choice([1, -1]))


def odd_yaml(data: bytes, chance: Chance) -> bytes:
    held = data.decode().split("\n")
    n, odd = chance.randrange(len(held)), chance.choice(YAML_ODD)
    key, colon, _ = held[n].partition(": ")
    held[n] = f"{key}: {odd}" if colon and chance.random() < 0.7 else f"{held[n]}\n{odd}"
    return _bytes("\n".join(held))


def odd_json(data: bytes, chance: Chance) -> bytes:
    held = data.decode().rstrip("\n").split("\n")
    n, odd = chance.randrange(len(held)), chance.choice(JSON_ODD)
    try:
        row = json.loads(held[n])
        row[chance.choice([*row, "new"])] = "HERE"
        held[n] = json.dumps(row).replace('"HERE"', odd)
    except (ValueError, TypeError, RecursionError):
        held[n] = odd
    return _bytes("\n".join([*held, odd] if chance.random() < 0.2 else held) + "\n")


def other_values(data: bytes, chance: Chance) -> bytes:
    """Some row with another value, another key, or one fewer, at any depth."""
    held = data.decode().rstrip("\n").split("\n")
    n = chance.randrange(len(held))
    try:
        row = json.loads(held[n])
    except (ValueError, RecursionError):
        return data
    held[n] = json.dumps(grafted(row, chance))
    return ("\n".join(held) + "\n").encode()


def whole_json(data: bytes, chance: Chance) -> bytes:
    """The same of a file that is one JSON value."""
    try:
        return json.dumps(grafted(json.loads(data), chance)).encode()
    except (ValueError, RecursionError):
        return data


def whole_yaml(data: bytes, chance: Chance) -> bytes:
    try:
        tree = grafted(yaml.safe_load(data), chance)
        return _bytes(yaml.safe_dump(tree, allow_unicode=True))
    except UNREADABLE:
        return data


def grafted(tree: Any, chance: Chance, value: Any = ...) -> Any:
    """The tree with another value, another key, or one fewer, one to three times, at any depth."""
    for _ in range(chance.randint(1, 3)):
        where: Any = tree
        while isinstance(where, (dict, list)) and where:
            key = chance.choice(list(where) if isinstance(where, dict) else list(range(len(where))))
            if isinstance(where[key], (dict, list)) and where[key] and chance.random() < 0.6:
                where = where[key]
                continue
            if chance.random() < 0.2 and isinstance(where, dict):
                where[chance.choice(KEYS)] = where.pop(key)
            elif chance.random() < 0.2:
                del where[key]
            else:
                where[key] = copy.deepcopy(chance.choice(VALUES) if value is ... else value)
            break
    return tree


def tensors(data: bytes, chance: Chance) -> bytes:
    """safetensors with another header: shapes, offsets, names, metadata or its length."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):
        return flipped(data, chance)
    if chance.random() < 0.15:
        return struct.pack("<Q", chance.choice([0, 1, size - 1, size + 1, 2**31, 2**63 - 1, 2**64 - 1])) + data[8:]
    text = json.dumps(grafted(header, chance)).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def table(data: bytes, chance: Chance) -> bytes:
    """Parquet with a column fewer, renamed, of another type, or with another cell."""
    try:
        frame = pd.read_parquet(io.BytesIO(data))
        name = chance.choice(list(frame.columns))
        way = chance.randrange(6)
        if way == 0:
            frame = frame.drop(columns=name)
        elif way == 1:
            frame = frame.rename(columns={name: chance.choice(["x", "topic", "", "a\nb"])})
        elif way == 2:
            frame[name] = chance.choice([0, 1.5, None, "x", True, float("nan")])
        elif way == 3:
            frame = frame.head(chance.choice([0, 1]))
        else:
            cell = chance.choice([*VALUES, '{"nats": null}', '{"nats": 1e308}', "[1]", "{", '{"a": []}', "[" * 2000])
            column = frame[name].astype(object)
            column.iloc[chance.randrange(len(frame))] = cell
            frame[name] = column.map(str) if chance.random() < 0.7 else column
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        return buffer.getvalue()
    except Exception:  # what pandas cannot write is no file to try
        return flipped(data, chance)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


ANY: list[Callable[[bytes, Chance], bytes]] = [flipped, cut, put_in, lines, renamed]
WAYS: dict[str, list[Callable[[bytes, Chance], bytes]]] = {
    "yaml": [*ANY, odd_yaml, odd_yaml, odd_yaml, whole_yaml, whole_yaml],
    "jsonl": [*ANY, odd_json, odd_json, other_values, other_values, other_values],
    "json": [*ANY, odd_json, whole_json, whole_json, whole_json, whole_json],
    "safetensors": [flipped, cut, tensors, tensors, tensors],
    "parquet": [flipped, cut, table, table, table],
}


def damaged(files: Files, chance: Chance) -> Files:
    """One to three damages to one or more of the files, the first file more often."""
    broken = dict(files)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        name = chance.choice([*broken, next(iter(broken))])
        broken[name] = hurt(name, broken[name], chance)
    return broken


def hurt(name: str, data: bytes, chance: Chance) -> bytes:
    """One damage, of a kind that fits the file's name."""
    try:
        return chance.choice(WAYS.get(name.rpartition(".")[2], ANY))(data or b"\n", chance)
    except UnicodeDecodeError:
        return flipped(data or b"\n", chance)
