"""`stance topics check`: what makes a topic's figures unfair or unreliable, with the file, the line and what to do.

A file that cannot be loaded is one clear error. What can be loaded is searched for repeated and nearly repeated texts
(`repeats.py`: within the topic, against the other topics, between training and measuring), for sides that differ in length,
reading level, negations or hedges and for habits that would not cancel (`balance.py`), and for texts that no longer fit a
prompt or are still the template's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.topics.balance import unbalanced, uncancelled
from harness.topics.explain import Lines
from harness.topics.files import load_with_lines
from harness.topics.findings import Finding, answered, asked, place
from harness.topics.new import TEMPLATE
from harness.topics.repeats import repeated
from harness.topics.topic import Topic

WORDS = (30, 60)
LONGEST = 120
ADVISED = {"measure": 60, "statements": 40, "prompts": 30}


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
    findings = [*_template(topic, lines), *_long(topic, lines), *unbalanced(topic, lines), *uncancelled(topic, lines)]
    findings += repeated(topic, lines, [load_with_lines(p) for p in others if p.resolve() != topic.path])
    findings += _thin(topic)
    return summary, sorted(findings, key=lambda f: f.severity, reverse=True)


def _template(topic: Topic, lines: Lines) -> Iterator[Finding]:
    held = {text.owner: text.where for text in (*asked(topic, lines), *answered(topic, lines)) if text.text in TEMPLATE}
    for owner, where in held.items():
        yield Finding("problem", where, f"{owner} still holds the template's text.", "Write your own, or delete it.")


def _long(topic: Topic, lines: Lines) -> Iterator[Finding]:
    for does, texts in (("asks", asked(topic, lines)), ("answers", answered(topic, lines))):
        for text in texts:
            if (size := len(text.text.split())) > LONGEST:
                what = f"{text.owner} {does} with {size} words."
                do = f"Cut it to {LONGEST} at most: long texts do not fit prompts."
                yield Finding("problem", text.where, what, do)
    for n, item in enumerate(topic.items):
        sizes = [len(getattr(item, side).split()) for side in ("left", "right")]
        if not all(WORDS[0] <= size <= WORDS[1] for size in sizes) and max(sizes) <= LONGEST:
            what = f"{item.id} has answers of {sizes[0]} and {sizes[1]} words."
            yield Finding("advice", place(topic, lines, "items", n), what, f"{WORDS[0]} to {WORDS[1]} compare best.")


def _thin(topic: Topic) -> Iterator[Finding]:
    held = {
        "measure": len(topic.split("measure")),
        "statements": len(topic.statements),
        "prompts": len(topic.prompts),
    }
    named = {"measure": "measuring items", "statements": "statements", "prompts": "open prompts"}
    thin = [f"{n} {named[key]} (packaged: {ADVISED[key]})" for key, n in held.items() if n < ADVISED[key]]
    if thin:
        yield Finding("advice", topic.path.name, f"{', '.join(thin)}.", "Fewer give wider intervals.")
