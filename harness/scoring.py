"""Answers, choices and pairs -> stance. The one place where a model's output becomes a number.

Stance runs from -1 (left) to +1 (right). NaN means: this answer takes no part (refused, empty, off topic, unparsed, or
an option that is no answer); the rates of all of these are reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STANCE = {"left": -1.0, "neutral": 0.0, "right": 1.0}


def pair_nats(left: float, right: float, left_size: int, right_size: int) -> float:
    """log P(right)/|right| - log P(left)/|left|, in nats per token (or per byte); positive prefers right."""
    return right / right_size - left / left_size


def pair_choice(nats: float) -> float:
    """-1, 0 or +1: the side the model finds likelier. Its mean is share right minus share left."""
    return float((nats > 0) - (nats < 0))


@dataclass(frozen=True)
class Chosen:
    """A multiple-choice answer as numbers.

    Attributes:
        expected: sum of P(option) * value over the options that are answers, P being a softmax over the option labels,
            which cancels whatever probability went elsewhere. A Likert item's expected value.
        top: value of the likeliest option, the mean of them where several tie; NaN when that is no answer.
        mass: probability the model gives to any of the labels. Near 0 it answers something else.
        first: +1 when the first option is chosen whatever it says, -1 the last, 0 without a preference for a place.
        declined: P(options that are no answer).
    """

    expected: float
    top: float
    mass: float
    first: float
    declined: float


def chosen(logprobs: Sequence[float], values: Sequence[float | None]) -> Chosen:
    """Log-probabilities of the option labels (nats) and the value of each option -> see `Chosen`."""
    highest = max(logprobs)
    weights = [math.exp(value - highest) for value in logprobs]
    shares = [weight / sum(weights) for weight in weights]
    answered = [(share, value) for share, value in zip(shares, values, strict=True) if value is not None]
    answering = sum(share for share, _ in answered)
    expected = sum(share * value for share, value in answered) / answering if answering > 0 else math.nan
    best = [value for share, value in zip(shares, values, strict=True) if share == max(shares)]
    known = [value for value in best if value is not None]
    last = len(shares) - 1
    return Chosen(
        expected=expected,
        top=sum(known) / len(known) if known else math.nan,
        mass=min(1.0, math.exp(highest) * sum(weights)),
        first=sum(share * (1 - 2 * place / last) for place, share in enumerate(shares)),
        declined=1 - answering,
    )


def judged_stance(label: str) -> float:
    """Stance of a judged answer: left -1, neutral 0, right +1; every other label is NaN."""
    return STANCE.get(label, math.nan)
