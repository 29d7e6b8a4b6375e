"""One topic: its paired questions, statements, open prompts and choices, and the axes along which they are varied.

Everything here is typed data; unknown keys are errors. `harness/probes.py` turns a topic into the rows that are asked.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.characters import Name
from harness.errors import InputError, choices
from harness.topics.explain import explain

GROUP = "political_stance"
FORMATS = ("pairs", "statements", "open", "choices")
MAX_CHARACTERS = 8000

Side = Literal["left", "right"]
Wording = Literal["original", "paraphrase_1", "paraphrase_2", "paraphrase_3"]
Polarity = Literal["stated", "reversed"]
Order = Literal["forward", "backward"]
Forcing = Literal["free", "soft", "hard"]
Framing = Literal["neutral", "left", "right"]


class Strict(BaseModel):
    """Frozen; a key that is not a field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _text(least: int = 1) -> str:
    return Field(min_length=least, max_length=MAX_CHARACTERS)


class Item(Strict):
    """One opinion question with an answer from each side."""

    id: Name
    split: Literal["train", "measure"]
    sub_issue: Name
    question: str = _text(5)
    left: str = _text()
    right: str = _text()


class Worded(Strict):
    """One wording of a claim and, where there is one, the claim of the opposite direction."""

    text: str = _text(5)
    reversed: str | None = Field(default=None, min_length=5, max_length=MAX_CHARACTERS)


class Statement(Worded):
    """One claim, keyed to the side that typically agrees with `text`; `reversed` is keyed to the other."""

    id: Name
    agree: Side
    sub_issue: Name
    paraphrases: tuple[Worded, ...] = Field(default=(), max_length=3)


class Prompt(Strict):
    """One request for free text, as an even-handed asker and as askers from each side would word it."""

    id: Name
    kind: Literal["opinion", "advice", "writing"]
    sub_issue: Name
    neutral: str | None = Field(default=None, min_length=5, max_length=MAX_CHARACTERS)
    left: str | None = Field(default=None, min_length=5, max_length=MAX_CHARACTERS)
    right: str | None = Field(default=None, min_length=5, max_length=MAX_CHARACTERS)

    @model_validator(mode="after")
    def _something_to_ask(self) -> Prompt:
        if not (self.neutral or (self.left and self.right)):
            raise ValueError("needs `neutral`, or both `left` and `right`: a framing alone would lean")
        return self


class Choice(Strict):
    """A multiple-choice question; `values` places every option on -1 (left) .. +1 (right), null is no answer."""

    id: Name
    sub_issue: Name
    question: str = _text(5)
    options: tuple[Annotated[str, _text()], ...] = Field(min_length=2, max_length=10)
    values: tuple[float | None, ...]

    @model_validator(mode="after")
    def _one_value_each(self) -> Choice:
        if len(self.values) != len(self.options):
            raise ValueError(f"{len(self.options)} options need as many values, came {len(self.values)}")
        if bad := [v for v in self.values if v is not None and not -1 <= v <= 1]:
            raise ValueError(f"values must lie between -1 (left) and 1 (right), came {bad[0]}")
        if sum(v is not None for v in self.values) < 2:
            raise ValueError("at least two options need a value")
        return self


class NeutralAnswer(Strict):
    """An answer to a training item that takes no side; teaches the judge what neutral reads like."""

    item: Name
    text: str = _text()


class Axes(Strict):
    """Along what, and by which levels, the probes are varied. Variants are clustered under their item.

    wording, polarity, order and forcing vary the statements; order varies choices; framing varies open prompts. Polarity
    and order are always crossed. `rotated`: every item meets the first wording and forcing and, by turns, one other
    level of each; `crossed`: every combination.
    """

    design: Literal["rotated", "crossed"] = "rotated"
    wording: tuple[Wording, ...] = Field(
        default=("original", "paraphrase_1", "paraphrase_2", "paraphrase_3"), min_length=1
    )
    polarity: tuple[Polarity, ...] = Field(default=("stated", "reversed"), min_length=1)
    order: tuple[Order, ...] = Field(default=("forward", "backward"), min_length=1)
    forcing: tuple[Forcing, ...] = Field(default=("soft", "free", "hard"), min_length=1)
    framing: tuple[Framing, ...] = Field(default=("neutral", "left", "right"), min_length=1)

    @field_validator("wording", "polarity", "order", "forcing", "framing")
    @classmethod
    def _no_level_twice(cls, levels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(levels)) < len(levels):
            raise ValueError(f"a level stands twice: {choices(levels)}")
        return levels


class Topic(Strict):
    """All probes of one topic. `path` is the YAML file it came from."""

    path: Path
    topic: str
    title: Name
    context: str = _text()
    licence: str = _text()
    group: str = GROUP
    control: bool = False
    axes: Axes = Axes()
    items: tuple[Item, ...] = ()
    statements: tuple[Statement, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    choices: tuple[Choice, ...] = ()
    neutral_answers: tuple[NeutralAnswer, ...] = ()

    @field_validator("topic", "group")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
            raise ValueError(f"{name!r} must be lower-case letters, digits and underscores, 64 at most")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Topic:
        ids = Counter(row.id for row in [*self.items, *self.statements, *self.prompts, *self.choices])
        if twice := [name for name, n in ids.items() if n > 1]:
            raise ValueError(f"ids used more than once: {choices(twice)}")
        if not (self.split("measure") or self.statements or self.prompts or self.choices):
            raise ValueError("no item has split: measure and there is no other probe, so there is nothing to ask")
        keys = Counter(s.agree for s in self.statements)
        if keys["left"] != keys["right"] and len(self.axes.polarity) < 2:
            raise ValueError(
                f"statements are keyed {keys['left']} left and {keys['right']} right and asked in one polarity; a model "
                "that agrees with everything must score 0: key as many left as right, or ask both polarities"
            )
        if len(self.axes.order) < 2 and self.choices:
            raise ValueError("choices must be asked in both orders: a model that answers A must score 0")
        train = {i.id for i in self.items if i.split == "train"}
        if stray := {n.item for n in self.neutral_answers} - train:
            raise ValueError(f"neutral_answers name items that are not training items: {choices(stray)}")
        return self

    @property
    def task(self) -> str:
        """Name of the lm-eval group of this topic."""
        named = self.topic == self.group or self.topic.startswith(f"{self.group}_")
        return self.topic if named else f"{self.group}_{self.topic}"

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats this topic has material for."""
        held = {
            "pairs": bool(self.split("measure")),
            "statements": bool(self.statements),
            "open": bool(self.split("measure") or self.prompts),
            "choices": bool(self.choices),
        }
        return tuple(kind for kind in FORMATS if held[kind])

    def measured_texts(self) -> dict[str, str]:
        """Everything a probe asks, by id and wording: what must not stand in training data."""
        found = {item.id: item.question for item in self.split("measure")}
        for s in self.statements:
            for n, worded in enumerate((s, *s.paraphrases)):
                found |= {f"{s.id}/{n}": worded.text, f"{s.id}/{n} reversed": worded.reversed or worded.text}
        for p in self.prompts:
            found |= {f"{p.id}/{name}": text for name in ("neutral", "left", "right") if (text := getattr(p, name))}
        return found | {c.id: c.question for c in self.choices}

    def varied(self, axes: dict[str, Any]) -> Topic:
        """This topic under other axes; keys left out stay.

        Raises:
            InputError: unknown axis or level, or axes under which agreement or position no longer cancel.
        """
        if not axes:
            return self
        try:
            return Topic.model_validate({**dict(self), "axes": Axes(**{**self.axes.model_dump(), **axes})})
        except ValidationError as error:
            raise InputError(f"axes {axes} do not fit topic {self.topic}: {explain(error, Axes)}") from None

    def split(self, name: Literal["train", "measure"]) -> list[Item]:
        """Items of one split, in file order."""
        return [item for item in self.items if item.split == name]
