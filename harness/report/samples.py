"""The samples: prompts with every run's answer, as many as a budget of bytes holds, the largest changes first.

Units differ between formats, so every format has its own order and they take turns. Texts that several runs share, as
most of a noise floor's, are kept once.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from harness.characters import visible
from harness.report import content
from harness.report.tables import MINUS
from harness.report.wording import changed

if TYPE_CHECKING:
    from harness.compare import Comparison

BUDGET = 3_000_000  # bytes, so that a page stays under 5 MB
SHOWN = 60  # without JavaScript
CUT = 1200
LETTERS = "ABCDEFGHIJ"
INDEX = 8  # bytes of a number into `texts`, at most, with its comma


@dataclass(frozen=True)
class Answer:
    """What one run answered; `value` is NaN where that has no stance."""

    text: str
    value: float


@dataclass(frozen=True)
class Asked:
    """One prompt with the answer of every run that was asked it, and the largest change of the plain fine-tunes.

    Attributes:
        options: of a pair, the answer of the left and that of the right; empty in other formats, whose prompts hold theirs.
    """

    format: str
    topic: str
    item: str
    variant: str
    prompt: str
    options: tuple[str, ...]
    answers: dict[str, Answer]
    change: float


@dataclass(frozen=True)
class Samples:
    """All prompts, in the order in which they are shown.

    Attributes:
        runs: label, role and reference of every run that was asked, in reading order.
        frame: what every prompt starts and ends with (a chat template), which is left out of them.
        cut: how many texts were longer than CUT characters.
    """

    asked: list[Asked]
    runs: list[dict[str, str]]
    frame: tuple[str, str]
    cut: int


def gathered(comparison: Comparison) -> Samples:
    """Every prompt of a comparison, the formats by turns, in each the largest changes first and those without last."""
    rows = content.records(comparison.samples)
    texts = {str(row["prompt"]) for row in rows}
    frame, cut = common(texts), sum(len(text.strip()) > CUT for text in texts | {str(row["answer"]) for row in rows})
    measured = {str(row["run"]) for row in rows}
    runs = [run for run in content.runs_of(comparison) if run["label"] in measured]
    runs.sort(key=lambda run: run["role"] != "base")
    first = runs[0]["label"] if runs else ""
    listed = [{"label": r["label"], "role": r["role"], "reference": r["reference"] or first} for r in runs]
    answers: dict[tuple[str, ...], dict[str, Answer]] = {}
    prompts: dict[tuple[str, ...], str] = {}
    options: dict[tuple[str, ...], tuple[str, ...]] = {}
    for row in rows:
        key = tuple(str(row[name]) for name in ("format", "topic", "item", "variant"))
        value = math.nan if row["value"] is None or pd.isna(row["value"]) else float(row["value"])
        answers.setdefault(key, {})[str(row["run"])] = Answer(shortened(readable(key[0], str(row["answer"]))), value)
        options.setdefault(key, tuple(shortened(str(text)) for text in json.loads(row["options"])))
        prompts.setdefault(key, shortened(str(row["prompt"]).removeprefix(frame[0]).removesuffix(frame[1])))
    asked = [
        Asked(*key, prompts[key], options[key], answers[key], _change(answers[key], listed))  # type: ignore[misc]
        for key in answers
    ]
    return Samples(_by_turns(asked), listed, frame, cut)


def _change(answers: dict[str, Answer], runs: list[dict[str, str]]) -> float:
    """The largest change of a plain fine-tune (without one, of any run but the noise floor); NaN without values."""
    after = [r for r in runs if r["role"] == "tuned"] or [r for r in runs if r["role"] not in ("base", "noise")]
    none = Answer("", math.nan)
    changes = [answers.get(r["label"], none).value - answers.get(r["reference"], none).value for r in after]
    return max((change for change in changes if not math.isnan(change)), key=abs, default=math.nan)


def _by_turns(asked: list[Asked]) -> list[Asked]:
    formats: dict[str, list[Asked]] = {}
    for one in sorted(asked, key=lambda one: -1.0 if math.isnan(one.change) else abs(one.change), reverse=True):
        formats.setdefault(one.format, []).append(one)
    return [one for one in chain.from_iterable(zip_longest(*formats.values())) if one is not None]


def common(prompts: set[str]) -> tuple[str, str]:
    """Whole lines that all prompts start with, and what all end with from a line's end on: a chat template's."""
    if len(prompts) < 2:
        return "", ""
    start = _shared(prompts)
    start = start[: start.rfind("\n") + 1]
    end = _shared({prompt[len(start) :][::-1] for prompt in prompts})[::-1]
    places = [at for mark in ("\n", "<|", "[/") if (at := end.find(mark)) >= 0]
    return start, end[min(places) :] if places else ""


def _shared(texts: set[str]) -> str:
    """What all start with: what the first and the last in order of characters do."""
    first, last = min(texts), max(texts)
    size = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:size]


def readable(kind: str, answer: str) -> str:
    """Log-probabilities of options as a person reads them; an open answer as it stands."""
    if kind not in ("pairs", "statements", "choices"):
        return answer
    try:
        found = [float(one[0] if isinstance(one, list) else one) for one in json.loads(answer)]
    except (ValueError, TypeError, IndexError):
        return answer
    if kind == "pairs" and len(found) == 2:
        names = zip(("left", "right"), found, strict=True)
        return ", ".join(f"{name} {value:.2f} nats".replace("-", MINUS) for name, value in names)
    if kind == "pairs" or len(found) > len(LETTERS) or max(found, default=1.0) > 0:
        return answer
    return ", ".join(f"{letter} {math.exp(value):.1%}" for letter, value in zip(LETTERS, found, strict=False))


def shortened(text: str) -> str:
    """Text of at most CUT characters, hidden ones escaped, and an ellipsis where there was more."""
    whole = visible(text.strip())
    return whole if len(whole) <= CUT else whole[:CUT].rstrip() + " \N{HORIZONTAL ELLIPSIS}"


def packed(samples: Samples, budget: int = BUDGET) -> tuple[Markup, int]:
    """The prompts that fit as JSON for a script element, and how many they are. `<` is escaped: no text ends the element.

    A prompt is [format, topic, item, variant, prompt, options, values, texts]: numbers into `names` and `texts`, the texts
    of a pair's options, and one value and one text per run, null where a run gave no stance or was not asked.
    """
    names: dict[str, int] = {}
    texts: dict[str, int] = {}
    rows: list[str] = []
    used = 0
    for one in samples.asked:
        answers = [one.answers.get(run["label"]) for run in samples.runs]
        values = [None if a is None or not math.isfinite(a.value) else round(a.value, 6) for a in answers]
        heads = (one.format, one.topic, one.item, one.variant)
        said = dict.fromkeys([one.prompt, *one.options, *(a.text for a in answers if a)])
        fresh = [name for name in heads if name not in names] + [text for text in said if text not in texts]
        used += (
            sum(_size(text) + 1 for text in fresh)
            + _size(values)
            + INDEX * (len(heads) + 1 + len(one.options) + len(answers))
        )
        if used > budget:
            break
        row = [
            *(names.setdefault(name, len(names)) for name in heads),
            texts.setdefault(one.prompt, len(texts)),
            [texts.setdefault(text, len(texts)) for text in one.options],
            values,
        ]
        rows.append(_json([*row, [None if a is None else texts.setdefault(a.text, len(texts)) for a in answers]]))
    runs = [{key: visible(text) for key, text in run.items()} for run in samples.runs]
    head = {"runs": runs, "names": [visible(name) for name in names], "texts": list(texts)}
    return Markup(f'{_json(head)[:-1]},"prompts":[{",".join(rows)}]}}'), len(rows)


def _size(value: Any) -> int:
    return len(_json(value).encode("utf-8", "replace"))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def static(samples: Samples) -> list[dict[str, Any]]:
    """The first SHOWN prompts for a page without JavaScript: main runs, with the words that an answer has anew."""
    hidden = (
        ("noise", "control") if any(run["role"] not in ("base", "noise", "control") for run in samples.runs) else ()
    )
    runs = [run for run in samples.runs if run["role"] not in hidden]
    nothing = Answer("", math.nan)
    shown = []
    for one in samples.asked[:SHOWN]:
        listed = []
        for run in (run for run in runs if run["label"] in one.answers):
            answer, before = one.answers[run["label"]], one.answers.get(run["reference"], nothing)
            marked = one.format not in ("pairs", "statements", "choices") and run["label"] != run["reference"]
            pieces = changed(before.text, answer.text) if marked else [("same", answer.text)]
            words = [piece for piece in pieces if piece[0] != "gone"] if answer.text else []
            listed.append({"run": run["label"], "role": run["role"], "value": answer.value, "pieces": words})
        shown.append({"one": one, "answers": listed})
    return shown
