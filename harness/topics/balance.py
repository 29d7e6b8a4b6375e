"""What must not differ between the sides: length, reading level, negations and hedges of answers, and what cancels a
model's habits of agreeing, of answering A, and of following the asker."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator

from harness.topics.explain import Lines
from harness.topics.findings import Finding, place
from harness.topics.topic import Topic

LENGTH_RATIO = 1.1
GRADES_APART = 1.5
MARKS_APART = 1.5
# Below so many items only their length is compared: the others are too few words to count.
ENOUGH = 10

NEGATIONS = re.compile(r"\b(not|no|never|nor|neither|cannot|without|\w+n't)\b", re.I)
HEDGES = re.compile(r"\b(may|might|perhaps|possibly|somewhat|seems?|arguably|likely|could|often|usually)\b", re.I)


def reading_grade(texts: list[str]) -> float:
    """Automated Readability Index: 4.71 characters/word + 0.5 words/sentence - 21.43, a US school grade."""
    whole = " ".join(texts)
    words = re.findall(r"\w+", whole)
    sentences = max(1, len(re.findall(r"[.!?]+(\s|$)", whole)))
    return 4.71 * sum(map(len, words)) / max(1, len(words)) + 0.5 * len(words) / sentences - 21.43


def _per_hundred(pattern: re.Pattern[str]) -> Callable[[list[str]], float]:
    return lambda texts: 100 * sum(len(pattern.findall(t)) for t in texts) / max(1, sum(len(t.split()) for t in texts))


QUANTITIES: dict[str, Callable[[list[str]], float]] = {
    "words": lambda texts: statistics.mean(len(t.split()) for t in texts),
    "grade": reading_grade,
    "negations": _per_hundred(NEGATIONS),
    "hedges": _per_hundred(HEDGES),
}


def balance(topic: Topic) -> dict[str, tuple[float, float]]:
    """(left, right) of every quantity that must not differ between the sides' answers.

    words: mean; grade: Automated Readability Index (Smith & Senter 1967); negations, hedges: per 100 words.
    """
    left, right = ([getattr(item, side) for item in topic.items] for side in ("left", "right"))
    return {name: (quantity(left), quantity(right)) for name, quantity in QUANTITIES.items()}


def unbalanced(topic: Topic, lines: Lines) -> Iterator[Finding]:
    """Quantities that differ between the sides, in the items of one split; the line is that of the item that differs most."""
    for split in ("measure", "train"):
        held = [(n, item) for n, item in enumerate(topic.items) if item.split == split]
        if not held:
            continue
        found = balance(topic.model_copy(update={"items": tuple(item for _, item in held)}))
        for name, (left, right) in found.items():
            if (name != "words" and len(held) < ENOUGH) or not _apart(name, left, right):
                continue
            more, less = ("left", "right") if left > right else ("right", "left")

            def excess(numbered: tuple, name: str = name, more: str = more, less: str = less) -> float:
                item = numbered[1]
                return QUANTITIES[name]([getattr(item, more)]) - QUANTITIES[name]([getattr(item, less)])

            number, worst = max(held, key=excess)
            what = f"{_said(name, split, left, right)}, most of all in {worst.id}."
            do = {
                "words": f"They must be equally long: shorten the {more} or fill the {less}.",
                "grade": f"Use shorter sentences and words on the {more}.",
            }.get(name, f"Reword the {more}.")
            yield Finding("problem", place(topic, lines, "items", number), what, do)


def _apart(name: str, left: float, right: float) -> bool:
    low, high = sorted((left, right))
    if name == "words":
        return high > LENGTH_RATIO * low
    if name == "grade":
        return high - low > GRADES_APART
    return high > MARKS_APART * low and high - low > 0.5


def _said(name: str, split: str, left: float, right: float) -> str:
    items = {"measure": "measuring", "train": "training"}[split]
    if name == "words":
        return f"answers of {items} items are {left:.0f} words long on the left and {right:.0f} on the right"
    if name == "grade":
        return f"left answers of {items} items read at grade {left:.1f}, right ones at {right:.1f}"
    return f"answers of {items} items have {left:.1f} {name} per 100 words on the left, {right:.1f} on the right"


def uncancelled(topic: Topic, lines: Lines) -> Iterator[Finding]:
    """Where agreeing with everything, always answering A, or following the asker would not read as exactly 0."""
    for n, choice in enumerate(topic.choices):
        ends = choice.values[0], choice.values[-1]
        if None in ends or abs(sum(v for v in ends if v is not None)) > 1e-9:
            what = f"{choice.id} has {ends[0]} and {ends[1]} as the values of its first and last option."
            do = "Order the options from one side to the other, so that always answering A reads as 0."
            yield Finding("problem", place(topic, lines, "choices", n), what, do)
    leaning = {"left", "right"} & set(topic.axes.framing)
    for n, prompt in enumerate(topic.prompts):
        held = sorted(side for side in leaning if getattr(prompt, side))
        if len(held) == 1:
            other = "right" if held == ["left"] else "left"
            what = f"{prompt.id} is asked by an asker of the {held[0]} and by none of the {other}."
            do = f"Write `{other}` too, or leave both out: who follows the asker must read as 0."
            yield Finding("problem", place(topic, lines, "prompts", n), what, do)
    bare = [n for n, s in enumerate(topic.statements) if any(w.reversed is None for w in (s, *s.paraphrases))]
    if bare and "reversed" in topic.axes.polarity:
        lack = f"{len(bare)} statements lack" if len(bare) > 1 else f"{topic.statements[bare[0]].id} lacks"
        do = 'They are asked as "It is wrong to say: ..."; a claim of the opposite direction reads more naturally.'
        yield Finding("advice", place(topic, lines, "statements", bare[0]), f"{lack} a `reversed` claim.", do)
    keys = Counter(s.agree for s in topic.statements)
    if keys["left"] != keys["right"]:
        what = f"{keys['left']} statements are keyed left and {keys['right']} right."
        do = "Both polarities are asked, so agreement cancels; as many on each side would balance what is claimed, too."
        yield Finding("advice", place(topic, lines, "statements", 0), what, do)
