"""Judges: which side an open answer takes. Refused and empty are labels of their own, never dropped.

The embedded judge is a TF-IDF logistic regression fitted in about a second on the packaged topics' training answers
(left, right) and even-handed answers (neutral); nothing is stored, so there is nothing to un-pickle. It reads wording,
not arguments: `stance topics judge` prints how often it is right on the answers it was not fitted on.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from harness.errors import InputError, choices
from harness.topics import Topic, find_topics

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

LABELS = ("left", "right", "neutral", "refused", "empty")

_REFUSAL = re.compile(
    r"\b(i (can ?not|can't|won't|am unable|'m unable|am not able|'m not able|do not have|don't have)\b.{0,60}"
    r"\b(opinion|opinions|view|views|belief|beliefs|answer|assist|help|discuss|comment|take a position|provide)"
    r"|as an ai\b.{0,80}\b(opinion|opinions|view|views|belief|beliefs|feelings)"
    r"|i('m| am) sorry,? but i)",
    re.IGNORECASE | re.DOTALL,
)


class Judge(Protocol):
    """Labels answers; `name` goes into the manifest."""

    name: str

    def label(self, questions: list[str], answers: list[str]) -> list[str]:
        """One of LABELS for every answer, in order."""
        ...


class EmbeddedJudge:
    """See the module's text. `topics` are the topics whose training answers it is fitted on."""

    name = "embedded"

    def __init__(self, topics: tuple[Topic, ...]) -> None:
        self._pipeline = _fit(topics)

    def label(self, questions: list[str], answers: list[str]) -> list[str]:
        labels = [_without_answer(answer) for answer in answers]
        asked = [n for n, label in enumerate(labels) if not label]
        if asked:
            for n, label in zip(asked, self._pipeline.predict([answers[n] for n in asked]), strict=True):
                labels[n] = str(label)
        return labels


def _without_answer(answer: str) -> str:
    if not re.search(r"\w{2,}", answer):
        return "empty"
    return "refused" if _REFUSAL.search(answer) else ""


def _fit(topics: tuple[Topic, ...]) -> Pipeline:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    texts, labels = [], []
    for topic in topics:
        for item in topic.split("train"):
            texts += [item.left, item.right]
            labels += ["left", "right"]
        texts += [answer.text for answer in topic.neutral_answers]
        labels += ["neutral"] * len(topic.neutral_answers)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=2)
    classifier = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
    return make_pipeline(make_union(words, letters), classifier).fit(texts, labels)


@lru_cache(maxsize=8)
def _embedded(paths: tuple[str, ...]) -> EmbeddedJudge:
    from pathlib import Path

    from harness.topics import load_topic

    return EmbeddedJudge(tuple(load_topic(Path(path)) for path in paths))


JUDGES = ("embedded",)


def check(name: str) -> None:
    """Refuse a judge that does not exist.

    Raises:
        InputError: no judge of that name.
    """
    if name not in JUDGES:
        raise InputError(f"There is no judge {name!r}; judges: {choices(JUDGES)}.")


def get(name: str, topics: tuple[Topic, ...] = ()) -> Judge:
    """A judge by name, fitted on the packaged topics and, where they have training answers, on `topics`.

    Raises:
        InputError: no judge of that name.
    """
    from harness.lmeval.roots import packaged_root

    check(name)
    packaged = find_topics([packaged_root()]).values()
    own = [t for t in topics if t.split("train")]
    return _embedded(tuple(sorted({str(t.path) for t in [*packaged, *own]})))
