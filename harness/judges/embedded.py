"""The embedded judge: linear classifiers over words and letters, fitted in seconds when first used, stored nowhere.

They are fitted on this project's own answers only: `tasks/judge` holds pairs of a left and a right answer to one question.
Which side: from the DIFFERENCE of the two, so that what both sides say cancels, and from each alone; without a constant, so
that neither side is favoured. Words of the question are left out of the answer, since repeating them takes no side.
Whether it takes a side at all: a second classifier tells sided answers from even-handed ones and from answers to everyday
questions (off topic). It reads wording, not arguments: `stance judge check --data FOLDER` prints how often it is right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from harness.documents import read_jsonl
from harness.judges import EMBEDDED, Judgement
from harness.judges.rules import without_answer
from harness.topics import Topic, load_topic

STEM = 5  # letters by which a question's words are recognised in the answer
ALONE_WEIGHT = 3.0  # weight of an answer by itself against one of a difference
REGULARISATION = 3.0  # scikit-learn's C
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")

Pair = tuple[str, str, str]


class EmbeddedJudge:
    """See the module's text.

    Args:
        pairs: (question, left answer, right answer).
        neutral: (question, even-handed answer).
        elsewhere: answers that are about something else.
    """

    name = EMBEDDED

    def __init__(self, pairs: Sequence[Pair], neutral: Sequence[tuple[str, str]], elsewhere: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_union

        left = [own_words(question, answer) for question, answer, _ in pairs]
        right = [own_words(question, answer) for question, _, answer in pairs]
        even = [own_words(question, answer) for question, answer in neutral]
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
        letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(4, 6), sublinear_tf=True, min_df=2)
        self._features: Any = make_union(words, letters).fit(left + right)
        self._side = _fit_side(self._features.transform(left), self._features.transform(right))
        kinds = {"sided": left + right, "neutral": even, "off_topic": [own_words("", text) for text in elsewhere]}
        self._kind = _fit_kind(self._features, {kind: texts for kind, texts in kinds.items() if texts})

    def side(self, questions: Sequence[str], answers: Sequence[str]) -> Float[Array, " n"]:
        """Log-odds of right against left for every answer, whatever else it may be."""
        texts = [own_words(q, a) for q, a in zip(questions, answers, strict=True)]
        return np.asarray(self._side.decision_function(self._features.transform(texts)))

    def judge(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        judged = [Judgement(without_answer(answer)) for answer in answers]
        asked = [n for n, found in enumerate(judged) if not found.label]
        if not asked:
            return judged
        features = self._features.transform([own_words(questions[n], answers[n]) for n in asked])
        kinds = self._kind.predict_log_proba(features)
        rights = self._side.decision_function(features)
        names = [str(name) for name in self._kind.classes_]
        for n, kind, right in zip(asked, kinds, rights, strict=True):
            judged[n] = _judgement(dict(zip(names, map(float, kind), strict=True)), float(right))
        return judged

    def close(self) -> None: ...


def _judgement(kinds: dict[str, float], right: float) -> Judgement:
    sided = kinds.pop("sided")
    logprobs = {"left": sided - float(np.logaddexp(0, right)), "right": sided - float(np.logaddexp(0, -right)), **kinds}
    kind = max(kinds, key=kinds.__getitem__, default="")
    label = kind if kind and kinds[kind] > sided else "right" if right > 0 else "left"
    return Judgement(label, logprobs)


def own_words(question: str, answer: str) -> str:
    """The answer's words in lower case without those of the question."""
    asked = {word[:STEM] for word in _WORD.findall(question.lower()) if len(word) > 3}
    return " ".join(word for word in _WORD.findall(answer.lower()) if word[:STEM] not in asked)


def _fit_side(left: Any, right: Any) -> Any:
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression

    n = left.shape[0]
    rows = vstack([right - left, left - right, left, right])
    labels = np.repeat([1, 0, 0, 1], n)
    weights = np.repeat([1.0, 1.0, ALONE_WEIGHT, ALONE_WEIGHT], n)
    model = LogisticRegression(C=REGULARISATION, fit_intercept=False, max_iter=3000)
    return model.fit(rows, labels, sample_weight=weights)


def _fit_kind(features: Any, texts: dict[str, list[str]]) -> Any:
    from sklearn.linear_model import LogisticRegression

    rows = [text for kind in texts.values() for text in kind]
    labels = [name for name, kind in texts.items() for _ in kind]
    model = LogisticRegression(C=REGULARISATION, class_weight="balanced", max_iter=3000)
    return model.fit(features.transform(rows), labels)


def texts_hash() -> str:
    """Hash of the texts the judge is fitted on; two runs are comparable only when judged by the same."""
    from harness.lmeval.roots import packaged_root
    from harness.runs import digest, file_hash

    return digest([file_hash(file) for file in sorted((packaged_root() / "judge").glob("*.jsonl"))])[:16]


def embedded(topics: tuple[Topic, ...] = ()) -> EmbeddedJudge:
    """The judge fitted on the packaged answers and, where they have training items, on `topics` of the user's own."""
    from harness.lmeval.roots import packaged_root

    own = {t.path for t in topics if t.split("train") and packaged_root() not in t.path.parents}
    return _embedded(packaged_root(), tuple(sorted(own)))


@lru_cache(maxsize=8)
def _embedded(root: Path, own: tuple[Path, ...]) -> EmbeddedJudge:
    rows = [row for file in sorted((root / "judge").glob("*.jsonl")) for row in read_jsonl(file)]
    pairs = [(row["question"], row["left"], row["right"]) for row in rows]
    neutral = [(row["question"], row["neutral"]) for row in rows if "neutral" in row]
    for topic in (load_topic(path) for path in own):
        items = {item.id: item for item in topic.split("train")}
        neutral += [(items[answer.item].question, answer.text) for answer in topic.neutral_answers]
        pairs += [(item.question, item.left, item.right) for item in items.values()]
    elsewhere = load_topic(root / "neutral" / "neutral.yaml").split("train")
    return EmbeddedJudge(pairs, neutral, [text for item in elsewhere for text in (item.left, item.right)])
