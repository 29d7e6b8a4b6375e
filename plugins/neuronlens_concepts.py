"""Concepts for NeuronLens (arXiv 2502.06809): classification tasks whose classes are the concepts, and how a model is asked.

    topics: questions of several topics; the concept is the topic
    sides: answers to one topic's questions; the concepts are left and right
    file: any labelled texts, JSONL or CSV with `text` and `label` (and `split`: train or measure, where the file has one)

The model reads a text and a cue and answers with one token: `names` takes the first token of each concept's name (what all
names begin with is put into the prompt), `letters`
lists the names under letters, in an order rotated from text to text, so that a fondness for one letter reads as chance.
Ranges are fitted at the last token of the prompt, where the answer is decided, on train texts; effects are measured on
others.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.documents import read_csv, read_jsonl
from harness.errors import InputError, choices
from harness.wording import normalised

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.topics import Topic

Split = Literal["train", "measure"]
Answer = Literal["names", "letters"]
MEASURED = 3  # every third text of a label is measured where a file has no splits


@dataclass(frozen=True)
class Example:
    """One labelled text."""

    id: str
    text: str
    concept: str
    split: Split


@dataclass(frozen=True)
class ConceptTask:
    """Labelled texts. `cue` is the word that asks for the label; `names` gives each concept's name, in order.

    Raises:
        InputError: fewer than two concepts, a concept with fewer than two train texts or without a text to measure, or a text
            that stands in both splits.
    """

    cue: str
    names: dict[str, str]
    examples: tuple[Example, ...]

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise InputError(f"Came the concepts {choices(self.names)}; a classification needs two or more.")
        counts = Counter((e.concept, e.split) for e in self.examples)
        for concept in self.names:
            train, measure = counts[concept, "train"], counts[concept, "measure"]
            if train < 2 or measure < 1:
                raise InputError(
                    f"Concept {concept!r} has {train} texts to fit on and {measure} to measure; expected two and one at "
                    "least, better dozens of each. Give more texts, or leave the concept out."
                )

        trained = {normalised(e.text) for e in self.examples if e.split == "train"}
        if both := [e.id for e in self.examples if e.split == "measure" and normalised(e.text) in trained]:
            raise InputError(
                f"{len(both)} texts to measure (first: {both[0]}) stand among those to fit on too; expected others, since "
                "a range fitted on a text says nothing by holding it. Take them out of one split."
            )

    def chosen(self, split: Split, count: int) -> list[Example]:
        """Up to `count` texts of each concept, spread evenly over its texts; those of one concept stand together."""
        found: list[Example] = []
        for concept in self.names:
            own = [e for e in self.examples if e.concept == concept and e.split == split]
            take = min(count, len(own))
            found += [own[n * len(own) // take] for n in range(take)]
        return found


def topics_task(topics: dict[str, Topic], wanted: Sequence[str] = ()) -> ConceptTask:
    """Which topic a question is about; `wanted` names the topics, all of them by default.

    Raises:
        InputError: an unknown topic, or too little material.
    """
    _known(topics, wanted)
    used = {name: topics[name] for name in (wanted or topics)}
    examples = [Example(i.id, i.question, name, i.split) for name, topic in used.items() for i in topic.items]
    return ConceptTask("Topic", {name: topic.title for name, topic in used.items()}, tuple(examples))


def sides_task(topics: dict[str, Topic], topic: str) -> ConceptTask:
    """Which side an answer of one topic is on. An item's two answers are in one split.

    Raises:
        InputError: an unknown topic, or too little material.
    """
    _known(topics, [topic])
    items, sides = topics[topic].items, ("left", "right")
    examples = [Example(f"{i.id}/{side}", getattr(i, side), side, i.split) for side in sides for i in items]
    return ConceptTask("Political side", {side: side.capitalize() for side in sides}, tuple(examples))


def _known(topics: dict[str, Topic], wanted: Sequence[str]) -> None:
    if unknown := [name for name in wanted if name not in topics]:
        raise InputError(f"There is no topic {choices(unknown)} to take concepts from; topics: {choices(topics)}.")


def file_task(path: Path, cue: str = "Label", wanted: Sequence[str] = ()) -> ConceptTask:
    """Labels of a JSONL or CSV file; `wanted` names the labels, all of them by default.

    Without a column `split`, every third text of a label is measured and the others are fitted on.

    Raises:
        InputError: no such file, another format, a row without text or label, an unknown split or label, or too little.
    """
    rows = _rows(path)
    splits = {"split" in row for row in rows}
    if len(splits) > 1:
        raise InputError(f"{path} has `split` in some rows and not in others; give it in all of them or in none.")
    examples, seen = [], Counter[str]()
    for number, row in enumerate(rows, 1):
        text, label = (str(row.get(key) or "").strip() for key in ("text", "label"))
        if not text or not label:
            raise InputError(
                f"{path}, entry {number}, has {choices(row) or 'nothing'}; expected a text under `text` and its class under "
                "`label`, neither of them empty."
            )
        seen[label] += 1
        split = row["split"] if "split" in row else "train" if seen[label] % MEASURED else "measure"
        if split not in ("train", "measure"):
            raise InputError(f"{path}, entry {number}, has split {split!r}; expected train or measure.")
        examples.append(Example(str(number), text, label, split))
    if unknown := [label for label in wanted if label not in seen]:
        raise InputError(f"{path} has no label {choices(unknown)}; its labels: {choices(seen)}.")
    used = tuple(wanted) or tuple(seen)
    return ConceptTask(cue, {label: label for label in used}, tuple(e for e in examples if e.concept in used))


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"There is no file {path}; expected labelled texts, JSONL or CSV with `text` and `label`.")
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    if path.suffix != ".csv":
        raise InputError(f"{path} ends in {path.suffix or 'nothing'}; expected .jsonl or .csv with `text` and `label`.")
    rows, _ = read_csv(path)
    if missing := [key for key in ("text", "label") if rows and key not in rows[0]]:
        raise InputError(f"{path} has no column {choices(missing)}; its columns: {choices(rows[0])}.")
    return list(rows)


@dataclass(frozen=True)
class Prompt:
    """A text as it is asked: token ids, the options' tokens in the order of the concepts, and which one is right."""

    example: Example
    ids: list[int]
    options: list[int]
    right: int


def prompts(
    task: ConceptTask,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    answer: Answer = "names",
    chat: bool = False,
) -> list[Prompt]:
    """Every text as it is asked. `chat` puts the question into the model's chat template.

    Raises:
        InputError: names that one token does not tell apart, more concepts than letters, or no chat template.
    """
    if chat and not tokenizer.chat_template:
        raise InputError("The model has no chat template; leave `chat` out.")
    concepts, found = list(task.names), []
    space = "" if chat else " "  # a chat template ends in a line of its own, plain text in the cue's colon
    letters = string.ascii_uppercase[: len(concepts)]
    if answer == "letters" and len(letters) < len(concepts):
        raise InputError(f"{len(concepts)} concepts have no letters of their own; use `answer: names`, or 26 at most.")
    begun, tokens = _told_apart(tokenizer, [space + w for w in (task.names.values() if answer == "names" else letters)])
    for number, example in enumerate(examples):
        order = [(n + number) % len(concepts) for n in range(len(concepts))]
        options, head = tokens, ""
        if answer == "letters":
            options = [tokens[order.index(n)] for n in range(len(concepts))]
            listed = (f"{letter}. {task.names[concepts[n]]}" for letter, n in zip(letters, order, strict=True))
            head = "\n".join([f"{task.cue} of the text:", *listed, "", ""])
        body = f"{head}Text: {example.text}\n{task.cue}:"
        ids = _encode(tokenizer, body, chat) + begun
        found.append(Prompt(example, ids, options, concepts.index(example.concept)))
    return found


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, chat: bool) -> list[int]:
    if chat:
        turn = [{"role": "user", "content": text}]
        text = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    return list(tokenizer(text, add_special_tokens=not chat)["input_ids"])  # type: ignore[arg-type]


def _told_apart(tokenizer: PreTrainedTokenizerBase, words: list[str]) -> tuple[list[int], list[int]]:
    """The tokens that all words begin with (a space, say), and the one after them of each word.

    Raises:
        InputError: words that this token does not tell apart.
    """
    encoded = [list(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in words]  # type: ignore[arg-type]
    begun = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*encoded, strict=False))]
    tokens = [ids[len(begun)] if len(ids) > len(begun) else -1 for ids in encoded]
    if same := [w.strip() for w, token in zip(words, tokens, strict=True) if tokens.count(token) > 1 or token < 0]:
        raise InputError(f"The names {choices(same)} cannot be told apart by one token; use `answer: letters`.")
    return begun, tokens
