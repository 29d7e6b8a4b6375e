"""Multiple-choice questions as prompts, and as the items that CULNIG scores: token ids and the gold letter's token.

One formatting serves lm-eval's tasks (plugins/culnig_tasks.py) and the scorer, and `item` cuts prompt and letter where
lm-eval cuts them, so that the probability the neurons are scored by is the one that is measured. The control form of a
question keeps the options and the label and leaves out what was asked (arXiv 2510.08284).

Political probes become items too: the two answers of a training question as options, in both orders, with the letter of
one side's answer as gold. A preference for a letter then cancels, and CULNIG runs on stance as it runs on culture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.documents import read_jsonl
from harness.errors import InputError, choices
from harness.lmeval.roots import packaged_root
from harness.probes import LETTERS
from harness.topics import Topic
from plugins.culnig import Item

KEYS = {"id", "field", "question", "options", "answer"}
SIDES = ("left", "right")


@dataclass(frozen=True)
class Question:
    """One multiple-choice question. `text` None is its control form; `answer` counts the options from 0."""

    id: str
    field: str
    text: str | None
    options: tuple[str, ...]
    answer: int
    country: str = ""

    @property
    def labels(self) -> list[str]:
        """Letters of the options."""
        return list(LETTERS[: len(self.options)])

    @property
    def prompt(self) -> str:
        """What is asked: the question if there is one, a lettered line per option, `Answer:`."""
        lines = "\n".join(f"{label}. {option}" for label, option in zip(self.labels, self.options, strict=True))
        return "\n\n".join(part for part in (self.text, lines, "Answer:") if part)

    def without_text(self) -> Question:
        """The control form: same options, same label, nothing asked."""
        return replace(self, text=None)


def culture_folder() -> Path:
    """The packaged folder of the culture items."""
    return packaged_root() / "culture"


def read_questions(path: Path) -> list[Question]:
    """Questions of a JSONL file; keys `id`, `field`, `question`, `options`, `answer` and, for a country's, `country`.

    Raises:
        InputError: no such file, or a line with other keys, fewer than two or repeated options, or an answer outside them.
    """
    questions = []
    for number, row in enumerate(read_jsonl(path), 1):
        options: Any = row.get("options")
        answer = row.get("answer")
        texts = [*options, row.get("question")] if isinstance(options, list) else [None]
        if set(row) - {"country"} != KEYS or type(answer) is not int or not all(isinstance(x, str) for x in texts):
            raise InputError(
                f"{path} record {number} has keys {choices(row)}; expected {choices(KEYS)} and perhaps `country`, with a "
                "text as question, a list of texts as options and the number of the right one, counted from 0."
            )
        if not 2 <= len(set(options)) == len(options) <= len(LETTERS) or not 0 <= answer < len(options):
            raise InputError(
                f"{path} record {number} has {len(options)} options and answer {answer}; expected 2 to {len(LETTERS)} "
                "options, no two the same, and the number of one of them, counted from 0."
            )
        country = str(row.get("country", ""))
        questions.append(Question(str(row["id"]), str(row["field"]), row["question"], tuple(options), answer, country))
    return questions


def items(questions: Sequence[Question], tokenizer: Any, chat: bool) -> list[Item]:
    """Every question as an item; `chat`: through the tokenizer's chat template, as they are measured."""
    return [item(question, tokenizer, chat) for question in questions]


def item(question: Question, tokenizer: Any, chat: bool) -> Item:
    """Prompt and gold letter as tokens, cut where lm-eval cuts them: everything but the letter's last token is context.

    Raises:
        InputError: letters that do not differ in exactly their last token, so that no single token tells them apart.
    """
    context = _context(question.prompt, tokenizer, chat)
    whole = [_encode(context + ("" if chat else " ") + label, tokenizer) for label in question.labels]
    if len({tuple(ids[:-1]) for ids in whole}) > 1 or len({ids[-1] for ids in whole}) < len(whole):
        raise InputError(
            f"{type(tokenizer).__name__} does not give the letters {choices(question.labels)} one token each at the end of "
            "a prompt; expected a tokenizer that tells them apart by their last token."
        )
    return Item(whole[0][:-1], whole[question.answer][-1])


def _context(prompt: str, tokenizer: Any, chat: bool) -> str:
    if not chat:
        return prompt
    asked = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))


def _encode(text: str, tokenizer: Any) -> list[int]:
    begin = tokenizer.bos_token
    special = not (isinstance(begin, str) and text.startswith(begin))
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def stance_questions(topics: Sequence[Topic], side: str, limit: int | None = None) -> list[Question]:
    """Two questions per training item: its left and right answer as options in both orders, `side`'s answer as gold.

    `limit`: training items per topic.

    Raises:
        InputError: an unknown side, a limit below 1, or a topic without training items.
    """
    if side not in SIDES:
        raise InputError(f"side is {side!r}; choose from {choices(SIDES)}.")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; expected at least 1 training item per topic, or none for all.")
    if empty := [topic.topic for topic in topics if not topic.split("train")]:
        raise InputError(f"Topic {choices(empty)} has no items with split: train, so there is nothing to score.")
    questions = []
    for topic in topics:
        for row in topic.split("train")[:limit]:
            for order in (SIDES, SIDES[::-1]):
                options = (str(getattr(row, order[0])), str(getattr(row, order[1])))
                name = f"{row.id}/{order[0]}-first"
                questions.append(Question(name, topic.topic, row.question, options, order.index(side)))
    return questions


def stance_items(
    topics: list[Topic], side: str, tokenizer: Any, chat: bool, limit: int | None = None, question: bool = True
) -> list[Item]:
    """`stance_questions` as items for `plugins.culnig.score`; `question` False gives their control form.

    Raises:
        InputError: as `stance_questions` and `item`.
    """
    asked = stance_questions(topics, side, limit)
    return items(asked if question else [one.without_text() for one in asked], tokenizer, chat)
