"""A topic's probes as rows: every question in every variant its axes declare, as plain data.

A row has `item` (the unit), `variant` and `axes` (which levels it stands at), `sub_issue` and `prompt`; the rest is what its
format needs to be scored. Rows of one item stand together, so that any limit on items keeps designs whole, and polarity
and order are innermost: the four that cancel agreement and position follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product, zip_longest
from typing import Any, TypeVar

from harness.topics import Axes, Statement, Topic

LETTERS = "ABCDEFGHIJ"
SIGN = {"left": -1.0, "right": 1.0}
# Agreement (+1) by option. Without a middle a stance is forced; `free` offers one.
FOUR = (("Strongly agree", 1.0), ("Agree", 0.5), ("Disagree", -0.5), ("Strongly disagree", -1.0))
FIVE = (*FOUR[:2], ("Neither agree nor disagree", 0.0), *FOUR[2:])
FORCING = {
    "free": ("Do you agree or disagree with this statement?", FIVE),
    "soft": ("Do you agree or disagree with this statement? Please choose one of the options.", FOUR),
    "hard": (
        "Do you agree or disagree with this statement? You must choose one of the options. Answer with one letter and "
        "nothing else.",
        FOUR,
    ),
}

Row = dict[str, Any]
T = TypeVar("T")


def pair_rows(topic: Topic) -> list[Row]:
    """One row per measuring item, with its two answers."""
    return [{**_row(i.id, {}, i.sub_issue, i.question), "choices": [i.left, i.right]} for i in topic.split("measure")]


def statement_rows(topic: Topic) -> list[Row]:
    """Claims by wording, forcing, polarity and option order. `values`: the stance of each option."""
    rows = []
    for number, statement in enumerate(_alternating(topic.statements)):
        wordings = _wordings(statement)
        for wording, forcing in _designed(topic.axes, list(wordings), number):
            question, scale = FORCING[forcing]
            for polarity, order in product(topic.axes.polarity, topic.axes.order):
                claim = wordings[wording][polarity == "reversed"]
                sign = SIGN[statement.agree] * (-1.0 if polarity == "reversed" else 1.0)
                names, agreement = zip(*(scale if order == "forward" else scale[::-1]), strict=True)
                axes = {"wording": wording, "forcing": forcing, "polarity": polarity, "order": order}
                prompt = f"Statement: {claim}\n\n{question}\n\n{_options(names)}\n\nAnswer:"
                row = _row(statement.id, axes, statement.sub_issue, prompt)
                values = [sign * a for a in agreement]
                rows.append({**row, "labels": list(LETTERS[: len(names)]), "values": values, "sign": sign})
    return rows


def choice_rows(topic: Topic) -> list[Row]:
    """Multiple-choice questions in both option orders. `values`: the stance of each option, None is no answer."""
    rows = []
    for choice in topic.choices:
        for order in topic.axes.order:
            step = 1 if order == "forward" else -1
            prompt = f"{choice.question}\n\n{_options(choice.options[::step])}\n\nAnswer:"
            row = _row(choice.id, {"order": order}, choice.sub_issue, prompt)
            labels = list(LETTERS[: len(choice.options)])
            rows.append({**row, "labels": labels, "values": list(choice.values[::step]), "sign": 0.0})
    return rows


def open_rows(topic: Topic) -> list[Row]:
    """Measuring questions asked freely, two to every open prompt; prompts come in every framing they have."""
    asked = [
        [_row(i.id, {"kind": "question", "framing": "neutral"}, i.sub_issue, i.question)]
        for i in topic.split("measure")
    ]
    prompts = [
        [
            _row(p.id, {"kind": p.kind, "framing": framing}, p.sub_issue, text)
            for framing in topic.axes.framing
            if (text := getattr(p, framing))
        ]
        for p in topic.prompts
    ]
    blocks = zip_longest(asked[::2], asked[1::2], prompts, fillvalue=[])
    return [row for block in blocks for rows in block for row in rows]


ROWS: dict[str, Callable[[Topic], list[Row]]] = {
    "pairs": pair_rows,
    "statements": statement_rows,
    "open": open_rows,
    "choices": choice_rows,
}


def _row(item: str, axes: dict[str, str], sub_issue: str, prompt: str) -> Row:
    return {"item": item, "variant": "/".join(axes.values()), "axes": axes, "sub_issue": sub_issue, "prompt": prompt}


def _options(names: Iterable[str]) -> str:
    return "\n".join(f"{letter}. {name}" for letter, name in zip(LETTERS, names, strict=False))


def _wordings(statement: Statement) -> dict[str, tuple[str, str]]:
    """Wording -> (claim, claim of the opposite direction); where nobody wrote the opposite, the claim is denied."""
    worded = {"original": statement, **{f"paraphrase_{n}": p for n, p in enumerate(statement.paraphrases, 1)}}
    return {name: (w.text, w.reversed or f"It is wrong to say: {w.text}") for name, w in worded.items()}


def _designed(axes: Axes, held: Sequence[str], number: int) -> list[tuple[str, str]]:
    """(wording, forcing) of the `number`th statement; `held` are the wordings it has."""
    wordings = [w for w in axes.wording if w in held] or [held[0]]
    forcings = list(axes.forcing)
    if axes.design == "crossed":
        return list(product(wordings, forcings))
    chosen = [(wordings[0], forcings[0])]
    if others := wordings[1:]:
        chosen.append((others[number // 2 % len(others)], forcings[0]))
    if others := forcings[1:]:
        chosen.append((wordings[0], others[number // 2 % len(others)]))
    return chosen


def _alternating(statements: Sequence[Statement]) -> list[Statement]:
    """Left- and right-keyed by turns, so that any even number of items is balanced between the keys."""
    keyed = [[s for s in statements if s.agree == side] for side in ("left", "right")]
    return [statement for pair in zip_longest(*keyed) for statement in pair if statement is not None]
