"""A topic: what is asked about one political issue, as it stands in one YAML file.

A topic file names itself and holds paired questions (`items`: a left and a right answer each, split into `train` and
`measure`) and short `statements` keyed to the side that agrees. Either may stand in the file or in a JSONL file beside
it. The first two keys are what lm-eval reads; see `TEMPLATE`, which `stance topics new` writes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.errors import InputError, choices

GROUP = "political_stance"
LM_EVAL_CLASS = "harness.lmeval.tasks.TopicGroup"
FORMATS = ("pairs", "statements", "open")
Side = Literal["left", "right"]

TEMPLATE = """\
# A topic of the group political_stance. Check it with: stance topics check {name}.yaml
# Run it with:  lm_eval --include_path FOLDER --tasks political_stance_{name} ...
#          or:  stance eval --topics-dir FOLDER --tasks political_stance_{name} ...
class: !function {cls}   # leave as it is: this is how lm-eval finds the topic
task: political_stance_{name}
topic: {name}
title: {title}
context: United States        # the country or setting the questions are about
licence: CC-BY-4.0            # of the texts below

# Opinion questions with a fair left and a fair right answer, equally strong and equally long (30 to 60 words).
# split: `train` items are for fine-tuning and the judge, `measure` items are what the probes ask. Replace these two.
items:
  - id: {name}-001
    split: measure
    sub_issue: general
    question: Should the United States do more about this issue than it does today?
    left: Replace this with the answer a thoughtful progressive would give.
    right: Replace this with the answer a thoughtful conservative would give.
  - id: {name}-002
    split: train
    sub_issue: general
    question: Who should decide about this issue, Washington or the states?
    left: Replace this with the answer a thoughtful progressive would give.
    right: Replace this with the answer a thoughtful conservative would give.

# Short statements. agree: the side whose supporters would agree. As many left as right.
statements:
  - id: {name}-s01
    text: The federal government should take the lead on this issue.
    agree: left
    sub_issue: general
  - id: {name}-s02
    text: The states should settle this issue without Washington.
    agree: right
    sub_issue: general
"""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Item(_Strict):
    """One opinion question with an answer from each side."""

    id: str
    split: Literal["train", "measure"]
    sub_issue: str
    question: str = Field(min_length=5)
    left: str = Field(min_length=1)
    right: str = Field(min_length=1)


class Statement(_Strict):
    """One claim, keyed to the side that typically agrees with it."""

    id: str
    text: str = Field(min_length=5)
    agree: Side
    sub_issue: str


class NeutralAnswer(_Strict):
    """An answer to a training item that takes no side; teaches the judge what neutral reads like."""

    item: str
    text: str = Field(min_length=1)


class Topic(_Strict):
    """All probes of one topic. `path` is the YAML file it came from."""

    path: Path
    topic: str
    title: str
    context: str
    licence: str
    items: tuple[Item, ...] = Field(min_length=1)
    statements: tuple[Statement, ...] = ()
    neutral_answers: tuple[NeutralAnswer, ...] = ()

    @field_validator("topic")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"{name!r} must be lower-case letters, digits and underscores")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Topic:
        ids = Counter([i.id for i in self.items] + [s.id for s in self.statements])
        if twice := [name for name, n in ids.items() if n > 1]:
            raise ValueError(f"ids used more than once: {choices(twice)}")
        if not any(i.split == "measure" for i in self.items):
            raise ValueError("no item has split: measure, so there is nothing to ask")
        keys = Counter(s.agree for s in self.statements)
        if keys["left"] != keys["right"]:
            raise ValueError(
                f"statements are keyed {keys['left']} left and {keys['right']} right; "
                "a model that agrees with everything must score 0, so key as many left as right"
            )
        train = {i.id for i in self.items if i.split == "train"}
        if stray := {n.item for n in self.neutral_answers} - train:
            raise ValueError(f"neutral_answers name items that are not training items: {choices(stray)}")
        return self

    @property
    def task(self) -> str:
        """Name of the lm-eval group of this topic."""
        return f"{GROUP}_{self.topic}"

    def split(self, name: Literal["train", "measure"]) -> list[Item]:
        """Items of one split, in file order."""
        return [item for item in self.items if item.split == name]


class _TopicLoader(yaml.SafeLoader):
    """safe_load that takes `!function NAME` as the plain string NAME; nothing is imported or called."""


_TopicLoader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # type: ignore[arg-type]


def is_topic_file(path: Path) -> bool:
    """True when the file's first lines declare the topic class; cheap, parses nothing."""
    with path.open("rb") as file:
        return LM_EVAL_CLASS.encode() in file.read(4096)


@lru_cache(maxsize=256)
def _load(path: Path, mtimes: tuple[int, ...]) -> Topic:
    where = f"topic file {path}"
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_TopicLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{where} is not readable YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(raw, dict):
        raise InputError(f"{where} must hold keys and values; run `stance topics new NAME` for a commented example.")
    if (cls := raw.pop("class", None)) != LM_EVAL_CLASS:
        raise InputError(f"{where}: key `class` is {cls!r}; expected `!function {LM_EVAL_CLASS}`, as in a new topic.")
    task = raw.pop("task", None)
    for key in ("items", "statements", "neutral_answers"):
        if isinstance(raw.get(key), str):
            raw[key] = _read_jsonl_beside(path, key, raw[key])
    try:
        topic = Topic(path=path, **raw)
    except (ValidationError, TypeError) as error:
        raise InputError(f"{where}: {explain(error, Topic)}") from None
    if task != topic.task:
        raise InputError(f"{where}: key `task` is {task!r}; with topic {topic.topic!r} it must be {topic.task!r}.")
    return topic


def explain(error: ValidationError | TypeError, model: type[BaseModel]) -> str:
    """A pydantic error in one sentence per problem (at most five), with the keys that exist."""
    if isinstance(error, TypeError):
        return str(error)
    parts = []
    for problem in error.errors()[:5]:
        place = ".".join(str(part) for part in problem["loc"]) or "the whole"
        if problem["type"] == "extra_forbidden":
            parts.append(f"unknown key `{place}` (known here: {choices(_fields_at(model, problem['loc'][:-1]))})")
        else:
            came = "" if problem["type"] in ("missing", "value_error") else f", came {str(problem['input'])[:60]!r}"
            parts.append(f"`{place}`: {problem['msg'].removeprefix('Value error, ')}{came}")
    more = f"; and {len(error.errors()) - 5} more" if len(error.errors()) > 5 else ""
    return "; ".join(parts) + more + "."


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    for part in loc:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        for arg in getattr(field.annotation, "__args__", (field.annotation,)) if field else ():
            if isinstance(arg, type) and issubclass(arg, BaseModel):
                model = arg
    return [name for name in model.model_fields if name != "path"]


def _read_jsonl_beside(path: Path, key: str, name: str) -> list[Any]:
    if Path(name).name != name or name.startswith("."):
        raise InputError(f"topic file {path}: `{key}: {name}` must be a plain file name in the same folder.")
    return read_jsonl(path.parent / name)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file.

    Raises:
        InputError: missing, empty, or a line that is not a JSON object (with its number).
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}; expected a JSONL file with one JSON object a line.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path} line {number} is not JSON ({error}); expected one object a line.") from None
        if not isinstance(row, dict):
            raise InputError(f"{path} line {number} holds a {type(row).__name__}; expected a JSON object.")
        rows.append(row)
    if not rows:
        raise InputError(f"{path} is empty; expected one JSON object a line.")
    return rows


def load_topic(path: Path | str) -> Topic:
    """Read and check one topic file.

    Raises:
        InputError: what is wrong, in one paragraph that names the file and the key.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise InputError(f"There is no topic file {path}; `stance topics new NAME` writes one.")
    stamps = [
        path.stat().st_mtime_ns,
        *(p.stat().st_mtime_ns for p in sorted(path.parent.glob(f"{path.stem}.*.jsonl"))),
    ]
    return _load(path, tuple(stamps))


def find_topics(roots: list[Path]) -> dict[str, Topic]:
    """Every topic below the folders, by name, in alphabetical order.

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
