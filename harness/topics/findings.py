"""What `stance topics check` works on and hands back: the texts that are asked with their places, and findings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.topics.explain import Lines
from harness.topics.topic import Topic


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
class Text:
    """A text that is asked or trained on. `kind`: the list it stands in; `use`: measure or train."""

    where: str
    topic: str
    owner: str
    kind: str
    use: str
    text: str


def place(topic: Topic, lines: Lines, key: str, number: int) -> str:
    """FILE:LINE of one entry of a topic's list."""
    file, numbers = lines.get(key, (topic.path, []))
    return f"{file.name}:{numbers[number]}" if number < len(numbers) else topic.path.name


def asked(topic: Topic, lines: Lines) -> Iterator[Text]:
    """Every question, claim and prompt; answers are not among them."""
    for n, item in enumerate(topic.items):
        yield Text(place(topic, lines, "items", n), topic.topic, item.id, "items", item.split, item.question)
    for n, s in enumerate(topic.statements):
        for worded in (s, *s.paraphrases):
            for text in filter(None, (worded.text, worded.reversed)):
                yield Text(place(topic, lines, "statements", n), topic.topic, s.id, "statements", "measure", text)
    for n, p in enumerate(topic.prompts):
        for text in filter(None, (p.neutral, p.left, p.right)):
            yield Text(place(topic, lines, "prompts", n), topic.topic, p.id, "prompts", "measure", text)
    for n, c in enumerate(topic.choices):
        yield Text(place(topic, lines, "choices", n), topic.topic, c.id, "choices", "measure", c.question)


def answered(topic: Topic, lines: Lines) -> Iterator[Text]:
    """Every answer and option that a topic holds ready."""
    for n, item in enumerate(topic.items):
        for text in (item.left, item.right):
            yield Text(place(topic, lines, "items", n), topic.topic, item.id, "items", item.split, text)
    for n, c in enumerate(topic.choices):
        for text in c.options:
            yield Text(place(topic, lines, "choices", n), topic.topic, c.id, "choices", "measure", text)
    for n, answer in enumerate(topic.neutral_answers):
        where, owner = place(topic, lines, "neutral_answers", n), f"the neutral answer to {answer.item}"
        yield Text(where, topic.topic, owner, "neutral_answers", "train", answer.text)
