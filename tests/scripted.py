"""Engines that answer by rule, to show what a pattern of answers reads as."""

from __future__ import annotations

from typing import Any

import tiny


class Scripted:
    """Prefers one label whatever is asked, likes every answer by its length, and always says the same."""

    name = "scripted"

    def __init__(self, labels: str = "A", says: str = "I think so.", likes: Any = None) -> None:
        self.tokenizer = tiny.tokenizer(chat=True)
        self.max_length = 10_000
        self._labels, self._says, self._likes = labels, says, likes

    def score_continuations(self, requests: list[Any]) -> list[tuple[float, bool]]:
        texts = [str(self.tokenizer.decode(continuation)) for _, continuation in requests]
        return [
            (-1.0 * len(c) + (self._likes(t) if self._likes else 0), False)
            for t, (_, c) in zip(texts, requests, strict=True)
        ]

    def score_choices(self, requests: list[Any]) -> list[list[float]]:
        out = []
        for context, options in requests:
            text = str(self.tokenizer.decode(context))
            wanted = self._labels
            if wanted in ("agree", "disagree"):
                wanted = "A" if f"A. {wanted.capitalize()}" in text else "B"
            out.append([0.0 if str(self.tokenizer.decode([o])).strip() == wanted else -20.0 for o in options])
        return out

    def generate(self, prompts: list[Any], max_tokens: int, stop: list[str], *sampling: float) -> list[str]:
        return [self._says] * len(prompts)

    def close(self) -> None: ...
