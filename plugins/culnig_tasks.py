"""The culture questions as lm-eval tasks: multiple choice over letters, with accuracy and the gold letter's probability.

A task is a YAML file with four keys: `class` (this file's), `task`, `items` (JSONL files beside it) and, where something else
than the plain question is asked, `form`.

| metric | unit | meaning |
| --- | --- | --- |
| acc | 0 or 1 | the gold letter is the likeliest |
| probability | 0 to 1 | the gold letter's share of the probability that all the letters get; moves before accuracy does |
"""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
from lm_eval.api.task import ConfigurableTask

from harness.errors import InputError, choices
from plugins.culnig_items import Question, read_questions

VERSION = 1
FORMS = ("question", "options")
METRICS = ("acc", "probability")


def questions_of(config: dict[str, Any], folder: Path) -> list[Question]:
    """What a task's file asks, of its JSONL files by turns, so that a limit on items takes as many of each.

    Raises:
        InputError: unknown keys or form, no file, or a broken one.
    """
    known = {"class", "task", "items", "form", "metadata"}
    if unknown := set(config) - known:
        raise InputError(
            f"Task {config.get('task')!r} has the keys {choices(unknown)}; a culture task has {choices(known)}."
        )
    files, form = config.get("items"), config.get("form", "question")
    if form not in FORMS or not files:
        raise InputError(
            f"Task {config.get('task')!r} has form {form!r} and items {files!r}; expected a form of {choices(FORMS)} and one "
            "or more JSONL files that lie beside it."
        )
    read = [read_questions(folder / name) for name in ([files] if isinstance(files, str) else files)]
    asked = [question for turn in zip_longest(*read) for question in turn if question is not None]
    return asked if form == "question" else [question.without_text() for question in asked]


def document(question: Question) -> dict[str, Any]:
    """A question as lm-eval and `harness.measure` take it."""
    return {
        "item": question.id,
        "sub_issue": question.country or question.field,
        "prompt": question.prompt,
        "labels": question.labels,
        "gold": question.answer,
    }


class CultureTask(ConfigurableTask):
    """One task of tasks/culture; see the module's docstring."""

    SETTINGS: ClassVar[dict[str, Any]] = {
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": ["A", "B"],
        "doc_to_target": "gold",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in METRICS],
    }

    def __init__(self, config: dict[str, Any]) -> None:
        metadata = {"version": VERSION, "num_fewshot": 0, **config.get("metadata", {})}
        self._questions = questions_of(config, Path(metadata.get("config_source", "")).parent)
        given = {"task": config["task"], "process_results": score, "metadata": metadata}
        super().__init__(config={**given, **self.SETTINGS})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        rows = [document(question) for question in self._questions]
        self.dataset = datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})

    def doc_to_text(self, doc: dict[str, Any], doc_to_text: Any = None) -> str:
        return doc["prompt"]

    def doc_to_choice(self, doc: dict[str, Any], doc_to_choice: Any = None) -> list[str]:
        return doc["labels"]


def score(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Log-probabilities (nats) of the letters of one document -> its metrics."""
    logprobs = np.array([float(logprob) for logprob, _ in results])
    shares = np.exp(logprobs - logprobs.max())
    return {
        "acc": float(logprobs.argmax() == doc["gold"]),
        "probability": float(shares[doc["gold"]] / shares.sum()),
    }
