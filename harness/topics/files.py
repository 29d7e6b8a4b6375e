"""Reading topics: one YAML file each, with long lists in JSONL files beside it.

The files are strangers' data: plain YAML and JSON only, nothing is imported or called, and every error names the file,
the line and the key. The first two keys, `class` and `task`, are what lm-eval reads.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from harness.characters import one_line, shown
from harness.documents import inside, numbered_jsonl, read_yaml
from harness.errors import InputError, choices
from harness.placed import here
from harness.topics.explain import Lines, explain, names
from harness.topics.topic import Topic

LM_EVAL_CLASS = "harness.lmeval.tasks.TopicGroup"
LISTS = ("items", "statements", "prompts", "choices", "neutral_answers")
# A control topic has no left and right; its two poles stand in their places.
POLES = {"first": "left", "second": "right"}


def is_topic_file(path: Path) -> bool:
    """True when the file's first lines declare the topic class; cheap, parses nothing."""
    if not path.is_file():
        return False
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
    _no_code_beside(path)
    stamps = [
        path.stat().st_mtime_ns,
        *(p.stat().st_mtime_ns for p in sorted(path.parent.glob(f"{path.stem}.*.jsonl")) if p.is_file()),
    ]
    return _load(path, tuple(stamps))


@lru_cache(maxsize=256)
def _load(path: Path, mtimes: tuple[int, ...]) -> tuple[Topic, Lines]:
    where = f"topic file {path}"
    raw, lines = _parse(path)
    if (cls := raw.pop("class", None)) != LM_EVAL_CLASS:
        raise InputError(
            f"{where}: key `class` is {shown(cls)}; expected `!function {LM_EVAL_CLASS}`, as in a new topic."
        )
    task = raw.pop("task", None)
    for key in LISTS:
        if isinstance(name := raw.get(key), str):
            raw[key], lines[key] = _beside(path, key, name)
    if raw.get("control") is True:
        raw.update({key: [_poled(row) for row in raw[key]] for key in LISTS if isinstance(raw.get(key), list)})
    _ids_once(raw, lines, where)
    try:
        topic = Topic.model_validate({**raw, "path": path})
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error, Topic, lines)}") from None
    if task != topic.task:
        raise InputError(f"{where}: key `task` is {shown(task)}; with topic {topic.topic!r} it must be {topic.task!r}.")
    return topic, lines


def _no_code_beside(path: Path) -> None:
    """lm-eval looks for the class that a file names in the file's own folder before it looks among what is installed."""
    module = f"{LM_EVAL_CLASS.rpartition('.')[0].replace('.', '/')}.py"
    beside, ours = path.parent / module, Path(__file__).parents[2] / module
    if beside.exists() and not (ours.exists() and beside.samefile(ours)):
        raise InputError(
            f"topic file {path}: its folder holds {module}, which lm-eval would run in place of what is installed. Remove "
            "it, or move the topic to a folder without it."
        )


def _parse(path: Path) -> tuple[dict[str, Any], Lines]:
    """The YAML's keys and values, and the line on which every entry of a list starts."""
    where = f"topic file {path}"
    raw, node = read_yaml(path, "topic file")
    if not isinstance(raw, dict) or not isinstance(node, yaml.MappingNode):
        raise InputError(f"{where} must hold keys and values; run `stance topics new NAME` for a commented example.")
    if odd := [key for key in raw if not isinstance(key, str) or key == "path"]:
        name = "path" if odd[0] == "path" else shown(odd[0])
        raise InputError(f"{where}: unknown key `{name}` (known here: {choices(names(Topic))}).")
    lines = {}
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            entries = value.value if isinstance(value, yaml.SequenceNode) else [key]
            lines[key.value] = path, [entry.start_mark.line + 1 for entry in entries]
    return raw, lines


def _ids_once(raw: dict[str, Any], lines: Lines, where: str) -> None:
    """The topic itself refuses ids that are used more than once; here it is known on which lines they stand."""
    places: dict[str, list[str]] = defaultdict(list)
    for key in LISTS:
        if isinstance(rows := raw.get(key), list) and key in lines:
            file, numbers = lines[key]
            for row, number in zip(rows, numbers, strict=True):
                if isinstance(row, dict) and isinstance(name := row.get("id"), str):
                    places[name].append(f"{file.name} line {number}")
    if twice := [f"{name[:60]} ({', '.join(at[:5])})" for name, at in places.items() if len(at) > 1]:
        raise InputError(one_line(f"{where}: `id` is used more than once: {choices(twice[:5])}; give each its own."))


def _beside(path: Path, key: str, name: str) -> tuple[list[Any], tuple[Path, list[int]]]:
    if (
        not name
        or not name.isprintable()
        or Path(name).name != name
        or name.startswith(".")
        or len(name.encode()) > 255
    ):
        odd = one_line(name)[:80]
        raise InputError(f"topic file {path}: `{key}: {odd}` must be a plain file name in the same folder.")
    rows, numbers = numbered_jsonl(inside(path.parent / name, path.parent))
    return rows, (path.parent / name, numbers)


def _poled(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    return {POLES.get(k, k): POLES.get(v, v) if k == "agree" and isinstance(v, str) else v for k, v in row.items()}


def find_topics(roots: list[Path]) -> dict[str, Topic]:
    """Every topic below the folders, by name, in alphabetical order; control topics are not among them.

    Raises:
        InputError: a broken topic file, a link out of its folder, or one name in two files.
    """
    return {name: topic for name, topic in all_topics(roots).items() if not topic.control}


def all_topics(roots: list[Path]) -> dict[str, Topic]:
    """`find_topics` with the control topics.

    Raises:
        InputError: a broken topic file, or one name in two files.
    """
    found: dict[str, Topic] = {}
    for root in dict.fromkeys(Path(here(r)).resolve() for r in roots):
        for path in sorted(root.glob("**/*.yaml")):
            if not is_topic_file(path):
                continue
            topic = load_topic(inside(path, root))
            other = found.setdefault(topic.topic, topic)
            if other.path != topic.path:
                raise InputError(
                    f"Topic {topic.topic!r} stands in two files, {other.path} and {topic.path}; rename one of them."
                )
    return dict(sorted(found.items()))
