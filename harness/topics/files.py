"""Reading topics: one YAML file each, with long lists in JSONL files beside it.

The files are strangers' data: plain YAML and JSON only, nothing is imported or called, and every error names the file,
the line and the key. The first two keys, `class` and `task`, are what lm-eval reads.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from harness.errors import InputError, choices
from harness.topics.explain import Lines, explain, names
from harness.topics.topic import Topic

LM_EVAL_CLASS = "harness.lmeval.tasks.TopicGroup"
LISTS = ("items", "statements", "prompts", "choices", "neutral_answers")
# A control topic has no left and right; its two poles stand in their places.
POLES = {"first": "left", "second": "right"}
MAX_BYTES = 50_000_000


class _TopicLoader(yaml.SafeLoader):
    """safe_load that takes `!function NAME` as the plain string NAME; nothing is imported or called."""


_TopicLoader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # type: ignore[arg-type]


def is_topic_file(path: Path) -> bool:
    """True when the file's first lines declare the topic class; cheap, parses nothing."""
    with path.open("rb") as file:
        return LM_EVAL_CLASS.encode() in file.read(4096)


def load_topic(path: Path | str) -> Topic:
    """Read and check one topic file.

    Raises:
        InputError: what is wrong, in one paragraph that names the file, the line and the key.
    """
    return load_with_lines(path)[0]


def load_with_lines(path: Path | str) -> tuple[Topic, Lines]:
    """A topic, and for every list of it the file and the lines where its entries stand.

    Raises:
        InputError: as `load_topic`.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise InputError(f"There is no topic file {path}; `stance topics new NAME` writes one.")
    stamps = [
        path.stat().st_mtime_ns,
        *(p.stat().st_mtime_ns for p in sorted(path.parent.glob(f"{path.stem}.*.jsonl"))),
    ]
    return _load(path, tuple(stamps))


@lru_cache(maxsize=256)
def _load(path: Path, mtimes: tuple[int, ...]) -> tuple[Topic, Lines]:
    where = f"topic file {path}"
    raw, lines = _parse(path)
    if (cls := raw.pop("class", None)) != LM_EVAL_CLASS:
        raise InputError(f"{where}: key `class` is {cls!r}; expected `!function {LM_EVAL_CLASS}`, as in a new topic.")
    task = raw.pop("task", None)
    for key in LISTS:
        if isinstance(name := raw.get(key), str):
            raw[key], lines[key] = _beside(path, key, name)
    if raw.get("control") is True:
        raw.update({key: [_poled(row) for row in raw[key]] for key in LISTS if isinstance(raw.get(key), list)})
    try:
        topic = Topic.model_validate({**raw, "path": path})
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error, Topic, lines)}") from None
    if task != topic.task:
        raise InputError(f"{where}: key `task` is {task!r}; with topic {topic.topic!r} it must be {topic.task!r}.")
    return topic, lines


def _parse(path: Path) -> tuple[dict[str, Any], Lines]:
    """The YAML's keys and values, and the line on which every entry of a list starts."""
    where = f"topic file {path}"
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{where} is larger than {MAX_BYTES // 10**6} MB; put long lists into a JSONL file beside it.")
    try:
        loader = _TopicLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        raw = loader.construct_document(node) if node is not None else None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{where} is not readable YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(raw, dict) or not isinstance(node, yaml.MappingNode):
        raise InputError(f"{where} must hold keys and values; run `stance topics new NAME` for a commented example.")
    if odd := [key for key in raw if not isinstance(key, str) or key == "path"]:
        raise InputError(f"{where}: unknown key `{odd[0]}` (known here: {choices(names(Topic))}).")
    lines = {
        key.value: (path, [entry.start_mark.line + 1 for entry in value.value])
        for key, value in node.value
        if isinstance(value, yaml.SequenceNode)
    }
    return raw, lines


def _beside(path: Path, key: str, name: str) -> tuple[list[Any], tuple[Path, list[int]]]:
    if Path(name).name != name or name.startswith("."):
        raise InputError(f"topic file {path}: `{key}: {name}` must be a plain file name in the same folder.")
    rows, numbers = numbered_jsonl(path.parent / name)
    return rows, (path.parent / name, numbers)


def _poled(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    return {POLES.get(k, k): POLES.get(v, v) if k == "agree" and isinstance(v, str) else v for k, v in row.items()}


def numbered_jsonl(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The objects of a JSONL file and the line of each.

    Raises:
        InputError: missing, empty, or a line that is not a JSON object (with its number).
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}; expected a JSONL file with one JSON object a line.")
    rows, numbers = [], []
    for number, line in enumerate(path.read_bytes().decode("utf-8", errors="replace").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} line {number} is not JSON ({error}); expected one object a line.") from None
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


def find_topics(roots: list[Path]) -> dict[str, Topic]:
    """Every topic below the folders, by name, in alphabetical order; control topics are not among them.

    Raises:
        InputError: a broken topic file, or one name in two files.
    """
    return {name: topic for name, topic in all_topics(roots).items() if not topic.control}


def all_topics(roots: list[Path]) -> dict[str, Topic]:
    """`find_topics` with the control topics.

    Raises:
        InputError: a broken topic file, or one name in two files.
    """
    found: dict[str, Topic] = {}
    for root in dict.fromkeys(r.resolve() for r in roots):
        for path in sorted(root.glob("**/*.yaml")):
            if not is_topic_file(path):
                continue
            topic = load_topic(path)
            other = found.setdefault(topic.topic, topic)
            if other.path != topic.path:
                raise InputError(
                    f"Topic {topic.topic!r} stands in two files, {other.path} and {topic.path}; rename one of them."
                )
    return dict(sorted(found.items()))
