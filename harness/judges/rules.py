"""What needs no model to see: empty answers and refusals. Every judge applies these first, so they mean one thing."""

from __future__ import annotations

import re

_REFUSAL = re.compile(
    r"\b(i (can ?not|can't|won't|am unable|'m unable|am not able|'m not able|do not have|don't have)\b.{0,60}"
    r"\b(opinion|opinions|view|views|belief|beliefs|answer|assist|help|discuss|comment|take a position|provide)"
    r"|as an ai\b.{0,80}\b(opinion|opinions|view|views|belief|beliefs|feelings)"
    r"|i('m| am) sorry,? but i)",
    re.IGNORECASE | re.DOTALL,
)


def without_answer(answer: str) -> str:
    """`empty`, `refused`, or "" when there is an answer to read."""
    if not re.search(r"\w{2,}", answer):
        return "empty"
    return "refused" if _REFUSAL.search(answer) else ""
