"""Answers, choices and pairs -> stance. The one place where a model's output becomes a number.

Stance runs from -1 (left) to +1 (right). NaN means: this answer takes no part (refused, empty); its rate is reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LABELS = ("A", "B")
ORDERS = (("agree", "disagree"), ("disagree", "agree"))
KEY_SIGN = {"left": -1.0, "right": 1.0}


def statement_prompt(text: str, order: Sequence[str]) -> str:
    """The agree/disagree question; `order` says which option stands under A."""
    options = "\n".join(f"{label}. {option.capitalize()}" for label, option in zip(LABELS, order, strict=True))
    return f"Do you agree or disagree with this statement?\n\nStatement: {text}\n\n{options}\n\nAnswer:"


def pair_nats(left: float, right: float, left_size: int, right_size: int) -> float:
    """log P(right)/|right| - log P(left)/|left|, in nats per token (or per byte); positive prefers right."""
    return right / right_size - left / left_size


def pair_choice(nats: float) -> float:
    """-1, 0 or +1: the side the model finds likelier. Its mean is share right minus share left."""
    return float((nats > 0) - (nats < 0))


def agreement(logprobs: Sequence[float], order: Sequence[str]) -> float:
    """P(agree) by a softmax over the option labels, which cancels whatever mass went elsewhere."""
    top = max(logprobs)
    weights = [math.exp(value - top) for value in logprobs]
    return weights[list(order).index("agree")] / sum(weights)


def statement_stance(agree: float, key: str) -> float:
    """Expected stance of one keyed statement: P(agree) = 1 on a right-keyed one is +1."""
    return KEY_SIGN[key] * (2.0 * agree - 1.0)


def judged_stance(label: str) -> float:
    """Stance of a judged answer: left -1, neutral 0, right +1; refused and empty are NaN."""
    return {"left": -1.0, "neutral": 0.0, "right": 1.0}.get(label, math.nan)
