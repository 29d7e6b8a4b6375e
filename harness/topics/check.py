"""`stance topics check`: what makes a topic's figures unfair or unreliable, with the file, the line and what to do.

A file that cannot be loaded is one clear error. What can be loaded is searched for repeated and nearly repeated texts
(within the topic, against the other topics, between training and measuring), for sides that differ in length, reading level,
negations or hedges, and for texts that no longer fit a prompt.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.topics.explain import Lines
from harness.topics.files import load_with_lines
from harness.topics.topic import Topic

WORDS = (30, 60)
LONGEST = 120
LENGTH_RATIO = 1.1
GRADES_APART = 1.5
MARKS_APART = 1.5
ADVISED = {"measure": 60, "statements": 40, "prompts": 30}
# Cosine of character n-grams above which two texts ask the same: reworded duplicates lie above, other questions below.
NEAR = 0.8

NEGATIONS = re.compile(r"\b(not|no|never|nor|neither|cannot|without|\w+n't)\b", re.I)
HEDGES = re.compile(r"\b(may|might|perhaps|possibly|somewhat|seems?|arguably|likely|could|often|usually)\b", re.I)


@dataclass(frozen=True)
class Finding:
    """One thing found: `problem` makes figures unfair, `advice` does not. `where` is FILE:LINE or the topic's file."""

    severity: str
    where: str
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.what} {self.do}"


@dataclass(frozen=True)
class _Text:
    """A text that is asked or trained on. `use`: measure or train."""

    where: str
    topic: str
    owner: str
    use: str
    text: str


def check_topic(path: Path, others: list[Path]) -> tuple[str, list[Finding]]:
    """A sentence on what the file holds, and what is wrong with it; `others` are files it is compared with.

    Raises:
        InputError: the file cannot be used at all.
    """
    topic, lines = load_with_lines(path)
    summary = (
        f"{topic.task}: {len(topic.split('measure'))} measuring and {len(topic.split('train'))} training items, "
        f"{len(topic.statements)} statements, {len(topic.prompts)} prompts, {len(topic.choices)} choices, "
        f"{len({row.sub_issue for row in (*topic.items, *topic.statements)})} sub-issues"
    )
    findings = [*_template(topic, lines), *_long(topic, lines), *_unbalanced(topic, lines), *_uncancelled(topic, lines)]
    findings += _repeated(topic, lines, [load_with_lines(p) for p in others if p.resolve() != topic.path])
    findings += _thin(topic)
    return summary, sorted(findings, key=lambda f: f.severity, reverse=True)


def _at(topic: Topic, lines: Lines, key: str, number: int) -> str:
    file, numbers = lines.get(key, (topic.path, []))
    return f"{file.name}:{numbers[number]}" if number < len(numbers) else topic.path.name


def _texts(topic: Topic, lines: Lines) -> Iterator[_Text]:
    """Every question, claim and prompt with its place; answers are not compared."""
    for n, item in enumerate(topic.items):
        yield _Text(_at(topic, lines, "items", n), topic.topic, item.id, item.split, item.question)
    for n, s in enumerate(topic.statements):
        for worded in (s, *s.paraphrases):
            for text in filter(None, (worded.text, worded.reversed)):
                yield _Text(_at(topic, lines, "statements", n), topic.topic, s.id, "measure", text)
    for n, p in enumerate(topic.prompts):
        for text in filter(None, (p.neutral, p.left, p.right)):
            yield _Text(_at(topic, lines, "prompts", n), topic.topic, p.id, "measure", text)
    for n, c in enumerate(topic.choices):
        yield _Text(_at(topic, lines, "choices", n), topic.topic, c.id, "measure", c.question)


def _repeated(topic: Topic, lines: Lines, others: list[tuple[Topic, Lines]]) -> list[Finding]:
    """Pairs of texts of different owners that ask the same. Training against measuring is a leak."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    own = list(_texts(topic, lines))
    rest = [text for other, places in others for text in _texts(other, places)]
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), sublinear_tf=True).fit_transform(
        [t.text for t in own + rest]
    )
    alike: Any = (vectors[: len(own)] @ vectors.T).tocoo()
    findings = []
    for a, b, cosine in sorted(zip(alike.row, alike.col, np.asarray(alike.data), strict=True)):
        if b <= a or cosine < NEAR:
            continue
        one, two = own[a], (own + rest)[b]
        if one.owner == two.owner and one.topic == two.topic and one.text.strip() != two.text.strip():
            continue
        asks = "asks the same as" if cosine > 0.995 else "asks nearly the same as"
        what = f"{one.owner} {asks} {two.owner} of {two.topic} ({two.where})"
        if one.use != two.use:
            do = "What is trained on cannot measure: replace one of them."
            findings.append(Finding("problem", one.where, f"{what}; one trains, the other measures.", do))
        elif one.use == two.use == "train":
            findings.append(Finding("advice", one.where, f"{what}.", "Both train; replace one for more breadth."))
        else:
            severity = "problem" if cosine > 0.995 else "advice"
            findings.append(Finding(severity, one.where, f"{what}.", "It counts twice; replace one of them."))
    return findings


def _template(topic: Topic, lines: Lines) -> list[Finding]:
    return [
        Finding(
            "problem",
            _at(topic, lines, "items", n),
            f"{i.id} still holds the template's answer.",
            "Write both answers.",
        )
        for n, i in enumerate(topic.items)
        if "Replace this with" in i.left + i.right
    ]


def _long(topic: Topic, lines: Lines) -> list[Finding]:
    findings = []
    for n, item in enumerate(topic.items):
        sizes = [len(getattr(item, side).split()) for side in ("left", "right")]
        where = _at(topic, lines, "items", n)
        if max(sizes) > LONGEST:
            what = f"{item.id} has an answer of {max(sizes)} words."
            findings.append(
                Finding("problem", where, what, f"Cut it to {WORDS[1]} at most: long answers do not fit prompts.")
            )
        elif not all(WORDS[0] <= size <= WORDS[1] for size in sizes):
            what = f"{item.id} has answers of {sizes[0]} and {sizes[1]} words."
            findings.append(Finding("advice", where, what, f"{WORDS[0]} to {WORDS[1]} each compare best."))
    for text in _texts(topic, lines):
        if len(text.text.split()) > LONGEST:
            what = f"{text.owner} asks with {len(text.text.split())} words."
            findings.append(Finding("problem", text.where, what, f"Cut it below {LONGEST}."))
    return findings


def balance(topic: Topic) -> dict[str, tuple[float, float]]:
    """(left, right) of every quantity that must not differ between the sides' answers.

    words: mean; grade: Automated Readability Index (Smith & Senter 1967); negations, hedges: per 100 words.
    """
    sides = {side: [getattr(item, side) for item in topic.items] for side in ("left", "right")}

    def per_side(measure: Any) -> tuple[float, float]:
        return measure(sides["left"]), measure(sides["right"])

    return {
        "words": per_side(lambda texts: statistics.mean(len(t.split()) for t in texts)),
        "grade": per_side(reading_grade),
        "negations": per_side(lambda texts: _per_hundred(NEGATIONS, texts)),
        "hedges": per_side(lambda texts: _per_hundred(HEDGES, texts)),
    }


def reading_grade(texts: list[str]) -> float:
    """Automated Readability Index: 4.71 characters/word + 0.5 words/sentence - 21.43, a US school grade."""
    whole = " ".join(texts)
    words = re.findall(r"\w+", whole)
    sentences = max(1, len(re.findall(r"[.!?]+(\s|$)", whole)))
    return 4.71 * sum(map(len, words)) / max(1, len(words)) + 0.5 * len(words) / sentences - 21.43


def _per_hundred(pattern: re.Pattern[str], texts: list[str]) -> float:
    return 100 * sum(len(pattern.findall(t)) for t in texts) / max(1, sum(len(t.split()) for t in texts))


def _unbalanced(topic: Topic, lines: Lines) -> list[Finding]:
    if not topic.items:
        return []
    found = balance(topic)
    words, grade = found["words"], found["grade"]
    where = lines.get("items", (topic.path, []))[0].name
    findings = []
    if max(words) > LENGTH_RATIO * min(words):
        what = f"answers are {words[0]:.0f} words long on the left and {words[1]:.0f} on the right."
        findings.append(
            Finding("problem", where, what, "They must be equally long: shorten one side or fill the other.")
        )
    if len(topic.items) < 10:
        return findings
    if abs(grade[0] - grade[1]) > GRADES_APART:
        what = f"left answers read at grade {grade[0]:.1f}, right ones at {grade[1]:.1f}."
        findings.append(Finding("problem", where, what, "Use shorter sentences and words on the harder side."))
    for name in ("negations", "hedges"):
        left, right = found[name]
        if max(left, right) > MARKS_APART * min(left, right) and abs(left - right) > 0.5:
            what = f"{left:.1f} {name} per 100 words on the left, {right:.1f} on the right."
            findings.append(Finding("problem", where, what, "Reword the side that has more."))
    return findings


def _uncancelled(topic: Topic, lines: Lines) -> list[Finding]:
    """Where agreement with everything, or the first option, would not read as exactly 0."""
    findings = []
    for n, choice in enumerate(topic.choices):
        ends = choice.values[0], choice.values[-1]
        if None in ends or abs(sum(v for v in ends if v is not None)) > 1e-9:
            what = f"{choice.id} has {ends[0]} and {ends[1]} as the values of its first and last option."
            do = "Order the options from one side to the other, so that always answering A reads as 0."
            findings.append(Finding("problem", _at(topic, lines, "choices", n), what, do))
    bare = [n for n, s in enumerate(topic.statements) if any(w.reversed is None for w in (s, *s.paraphrases))]
    if bare and "reversed" in topic.axes.polarity:
        what = f"{len(bare)} statements lack a `reversed` claim."
        do = 'They are asked as "It is wrong to say: ..."; a claim of the opposite direction reads more naturally.'
        findings.append(Finding("advice", _at(topic, lines, "statements", bare[0]), what, do))
    return findings


def _thin(topic: Topic) -> list[Finding]:
    held = {
        "measure": len(topic.split("measure")),
        "statements": len(topic.statements),
        "prompts": len(topic.prompts),
    }
    named = {"measure": "measuring items", "statements": "statements", "prompts": "open prompts"}
    thin = [f"{n} {named[key]} (packaged: {ADVISED[key]})" for key, n in held.items() if n < ADVISED[key]]
    what = f"{', '.join(thin)}."
    return [Finding("advice", topic.path.name, what, "Fewer give wider intervals.")] if thin else []
