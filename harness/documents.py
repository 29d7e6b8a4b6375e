"""Reading what strangers wrote: the one way into YAML, JSON, JSONL, CSV and text files.

Nothing is imported, called or unpacked, and what is read is bounded: bytes before they are read, depth while they are
parsed. YAML has no aliases, of which a few lines unfold to gigabytes, and no tags beyond its own but `!function NAME`, which
is the text NAME. A key that stands twice is an error, since one of its values would be lost; so is half a character (a
lone surrogate), which no file and no tokenizer can take.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer, ComposerError
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.cyaml import CParser  # type: ignore[attr-defined]
from yaml.resolver import Resolver

from harness.characters import one_line
from harness.errors import InputError, choices

MOST_BYTES = 200_000_000
MOST_YAML = 5_000_000
MOST_DEPTH = 64
# Beside its own errors PyYAML lets through what its constructors stumble over, as in `!!bool maybe` or `!!int ""`.
UNREADABLE = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def read_bytes(path: Path, what: str = "file", most: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file.

    Raises:
        InputError: no such file, one larger than `most` bytes, or one that cannot be read.
    """
    try:
        if not path.is_file():
            raise InputError(f"There is no {what} {path}; give the path of one that is there.")
        size = path.stat().st_size
        if size > most:
            raise InputError(
                f"{what} {path} is larger than {most // 10**6} MB ({size:,} bytes); put long lists into a JSONL file beside "
                "it, or split it."
            )
        with path.open("rb") as file:
            return file.read(most + 1)[:most]
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read ({error.strerror}); check its name and permissions.") from None


def read_text(path: Path, what: str = "file", most: int = MOST_BYTES) -> str:
    """The text of a file in UTF-8.

    Raises:
        InputError: as `read_bytes`, or bytes that are no UTF-8.
    """
    try:
        return read_bytes(path, what, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path} is not text in UTF-8 ({one_line(str(error))}); save it so.") from None


def inside(path: Path, folder: Path) -> Path:
    """The path, if what it leads to lies in the folder: a link out of a stranger's folder may lead to what is yours.

    Raises:
        InputError: a link out of the folder.
    """
    target = path.resolve()
    if folder.resolve() not in target.parents:
        raise InputError(
            f"{path} leads out of {folder}, to {target}; expected files that lie in the folder they are found in. Copy the "
            "file in place of the link."
        )
    return path


class _Loader(Composer, CParser, SafeConstructor, Resolver):  # type: ignore[misc]
    """safe_load with the bounds of this module; libyaml reads the characters, five times as fast."""

    def __init__(self, text: str) -> None:
        CParser.__init__(self, text)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, "aliases (*name) are not taken: write the text out", mark)
        if self._depth >= MOST_DEPTH:
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, f"more than {MOST_DEPTH} levels stand within each other", mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, n in keys.items() if n > 1]:
            problem = f"key `{twice[0][:60]}` stands twice in what begins"
            raise ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # type: ignore[arg-type]


def read_yaml(path: Path, what: str = "file") -> tuple[Any, yaml.Node | None]:
    """The value of a YAML file and the node it was made of, which knows the lines.

    Raises:
        InputError: as `read_text`; YAML that cannot be read, with aliases, a key twice, too deep or too large.
    """
    text = read_text(path, what, MOST_YAML)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    except UNREADABLE as error:
        said = one_line(str(error)).replace('"<unicode string>"', f'"{path.name}"')[:400]
        said = said if isinstance(error, yaml.YAMLError) else f"a value does not fit its tag ({said})"
        raise InputError(f"{what} {path} is not readable YAML: {said}.") from None


def read_mapping(path: Path, what: str = "file") -> dict[str, Any]:
    """The keys and values of a YAML file; {} of an empty one.

    Raises:
        InputError: as `read_yaml`; anything but text keys with values.
    """
    value, _ = read_yaml(path, what)
    if value is not None and not (isinstance(value, dict) and all(isinstance(key, str) for key in value)):
        raise InputError(f"{what} {path} must hold keys and values, `key: value` a line.")
    return value or {}


def parse_json(text: bytes) -> Any:
    """A JSON value.

    Raises:
        ValueError: what is no JSON in UTF-8, too deep, or holds a key twice or half a character; it says which.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_each_key_once)
    except RecursionError:
        raise ValueError(f"more than {MOST_DEPTH} levels stand within each other") from None
    if text.count(b"[") + text.count(b"{") > MOST_DEPTH and _deeper(value, MOST_DEPTH):
        raise ValueError(f"more than {MOST_DEPTH} levels stand within each other")
    if _HALF.search(text) and not _whole(value):
        raise ValueError("a text holds half a character (a lone surrogate)")
    return value


def read_json(path: Path, what: str = "file") -> Any:
    """The value of a JSON file.

    Raises:
        InputError: as `read_bytes`, or as `parse_json`.
    """
    text = read_bytes(path, what)
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(f"{what} {path} is not readable JSON ({one_line(str(error))[:200]}).") from None


def read_object(path: Path, what: str = "file") -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        InputError: as `read_json`; a value that is no object.
    """
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise InputError(f"{what} {path} holds a JSON {type(value).__name__}; expected an object of keys and values.")
    return value


def numbered_jsonl(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The objects of a JSONL file and the line of each.

    Raises:
        InputError: missing, empty, or a line that is not a JSON object (with its number).
    """
    rows, numbers = [], []
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            why = one_line(str(error))[:200]
            raise InputError(f"{path} line {number} is not JSON ({why}); expected one object a line.") from None
        if not isinstance(row, dict):
            raise InputError(f"{path} line {number} holds a {type(row).__name__}; expected a JSON object.")
        rows.append(row)
        numbers.append(number)
    if not rows:
        raise InputError(f"{path} is empty; expected one JSON object a line.")
    return rows, numbers


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; see `numbered_jsonl`."""
    return numbered_jsonl(path)[0]


def read_csv(path: Path) -> tuple[list[dict[str, str]], list[int]]:
    """The rows of a CSV file with a header, and the line on which each of them ends.

    Raises:
        InputError: as `read_text`, no CSV, a column twice, or a row with more or fewer fields than the header.
    """
    rows, lines = [], []
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        header = list(reader.fieldnames or [])
        if len(set(header)) < len(header):
            raise InputError(f"{path} has a column twice, of {choices(header)}; give each its own name.")
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{path} line {reader.line_num} has not as many fields as the header; quote texts with commas."
                )
            rows.append(dict(row))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise InputError(
            f"{path} is not readable CSV ({error}); quote texts that hold commas or line breaks."
        ) from None
    return rows, lines


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(row := dict(pairs)) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"key `{twice[:60]}` stands twice")
    return row


def _deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [
            x
            for one in level
            if isinstance(one, (list, dict))
            for x in (one if isinstance(one, list) else one.values())
        ]
        if not level:
            return False
    return any(isinstance(one, (list, dict)) for one in level)


def _whole(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
