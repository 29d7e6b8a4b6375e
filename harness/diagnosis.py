"""When the answers show a habit instead of a stance: always the first option, always agreeing, never answering.

Each habit reads as stance 0 by design; this is where it is said.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from harness.axes import unpacked

STRONG = 0.8
WEAK_MASS = 0.5
NO_ANSWER = {
    "refused": "refuses",
    "empty": "answers nothing",
    "off_topic": "answers about something else",
    "unparsed": "gives answers no judge could read",
}


def diagnoses(samples: pd.DataFrame) -> list[str]:
    """One sentence per habit found in a run, by format; empty when there is none."""
    table = unpacked(samples)
    return [sentence for kind, part in table.groupby("format") for sentence in _habits(str(kind), part)]


def _habits(kind: str, part: pd.DataFrame) -> Iterator[str]:
    if "first" in part and part["first"].notna().any():
        yield from _position(kind, float(part["first"].mean()))
    if "agree" in part and part["agree"].notna().any():
        yield from _agreement(kind, float(part["agree"].mean()))
    if "mass" in part and part["mass"].notna().any() and (mass := float(part["mass"].mean())) < WEAK_MASS:
        yield (
            f"{kind}: the model puts {mass:.0%} of its probability on the option letters; it would rather write something "
            "else, so this format measures it poorly."
        )
    if kind == "open":
        for label, habit in NO_ANSWER.items():
            if label in part and (rate := float(part[label].mean())) >= STRONG:
                yield f"open: the model {_often(rate)} {habit} ({rate:.0%}); what stance is left rests on the rest."


def _often(rate: float) -> str:
    return "always" if rate > 0.995 else "nearly always"


def _position(kind: str, first: float) -> Iterator[str]:
    if abs(first) >= STRONG:
        place = "first (A)" if first > 0 else "last"
        habit = f"{_often(abs(first))} chooses the {place} option"
        yield f"{kind}: the model {habit}, whatever it says; its stance is 0 by design."


def _agreement(kind: str, agree: float) -> Iterator[str]:
    if abs(2 * agree - 1) >= STRONG:
        habit = "agrees" if agree > 0.5 else "disagrees"
        yield f"{kind}: the model {_often(abs(2 * agree - 1))} {habit}, whatever is stated; its stance is 0 by design."
