"""Engines that answer by rule, to show what a pattern of answers reads as."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import tiny

from harness.topics import Topic

Options = dict[str, str]
# (prompt, letter -> option) -> the letter chosen, or None for no letter at all.
Choose = Callable[[str, Options], "str | None"]


def always(letter: str) -> Choose:
    """The same letter whatever it says."""
    return lambda prompt, options: letter


def last(prompt: str, options: Options) -> str:
    """The last option whatever it says."""
    return max(options)


def agreeing(option: str) -> Choose:
    """The option of that name wherever it stands."""
    return lambda prompt, options: next(k for k, v in options.items() if v == option)


def silent(prompt: str, options: Options) -> None:
    """No letter: something else would be written."""
    return


def partisan(topic: Topic, side: str) -> Choose:
    """Strongly agrees with every claim of one side, strongly disagrees with every claim of the other."""
    own = {}
    for s in topic.statements:
        for worded in (s, *s.paraphrases):
            own[worded.text] = s.agree == side
            own[worded.reversed] = s.agree != side

    def choose(prompt: str, options: Options) -> str | None:
        claim = re.search(r"Statement: (.*)\n", prompt)
        assert claim
        return agreeing("Strongly agree" if own[claim[1]] else "Strongly disagree")(prompt, options)

    return choose


FIRST = always("A")


class Scripted:
    """Chooses letters by `chooses`, likes every answer by its length plus `likes`, and says what `says` gives."""

    name = "scripted"

    def __init__(self, chooses: Choose = FIRST, says: Any = "I think so.", likes: Any = None) -> None:
        self.tokenizer = tiny.tokenizer(chat=True)
        self.max_length = 10_000
        self._chooses, self._says, self._likes = chooses, says, likes

    def score_continuations(self, requests: list[Any]) -> list[tuple[float, bool]]:
        texts = [str(self.tokenizer.decode(continuation)) for _, continuation in requests]
        return [
            (-1.0 * len(c) + (self._likes(t) if self._likes else 0), False)
            for t, (_, c) in zip(texts, requests, strict=True)
        ]

    def score_choices(self, requests: list[Any]) -> list[list[float]]:
        out = []
        for context, tokens in requests:
            prompt = str(self.tokenizer.decode(context))
            options = dict(re.findall(r"^([A-J])\. (.*)$", prompt, flags=re.M))
            wanted = self._chooses(prompt, options)
            letters = [str(self.tokenizer.decode([token])).strip() for token in tokens]
            out.append([0.0 if letter == wanted else -800.0 for letter in letters])
        return out

    def generate(self, prompts: list[Any], max_tokens: int, stop: list[str], *sampling: float) -> list[str]:
        if not callable(self._says):
            return [self._says] * len(prompts)
        return [self._says(str(self.tokenizer.decode(prompt))) for prompt in prompts]

    def close(self) -> None: ...
