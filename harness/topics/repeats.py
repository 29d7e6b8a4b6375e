"""Texts that ask the same: within a topic, against the other topics, and between training and measuring."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from harness.topics.explain import Lines
from harness.topics.findings import Finding, Text, asked
from harness.topics.topic import Topic
from harness.wording import normalised

# Of 288 near pairs between training and measuring in the packaged topics, read by hand, from LEAK up nine of ten ask the
# same, from PERHAPS up to LEAK two of three. REPEAT is for two texts of one use, where less is at stake.
LEAK, PERHAPS, REPEAT = 0.55, 0.45, 0.7
# What is reported as one figure. Asking one thing in two formats is no repeat.
FORMATS = {"items": "open", "prompts": "open", "statements": "statements", "choices": "choices"}


def repeated(topic: Topic, lines: Lines, others: list[tuple[Topic, Lines]]) -> list[Finding]:
    """Pairs of texts that ask the same, once per pair of owners."""
    own = list(asked(topic, lines))
    rest = [text for other, places in others for text in asked(other, places)]
    findings = []
    for one, two, cosine in _closest(own, own + rest):
        same = normalised(one.text) == normalised(two.text)
        leak = one.use != two.use
        if (one.topic, one.owner) == (two.topic, two.owner) and not same:
            continue
        asks = "asks the same as" if same else "asks nearly the same as" if cosine >= LEAK else "may ask the same as"
        what = f"{one.owner} ({_short(one)}) {asks} {two.owner} of {two.topic} ({two.where}: {_short(two)})"
        if leak and (same or cosine >= PERHAPS):
            what += f"; one trains, the other measures, cosine {cosine:.2f}."
            sure = same or cosine >= LEAK
            do = "What is trained on cannot measure: replace one of them" + ("." if sure else ", if so.")
            findings.append(Finding("problem" if sure else "advice", one.where, what, do))
        elif not leak and (same or (cosine >= REPEAT and FORMATS[one.kind] == FORMATS[two.kind])):
            do = "It counts twice: replace one of them."
            findings.append(Finding("problem" if same else "advice", one.where, f"{what}.", do))
    return findings


def _short(text: Text) -> str:
    return f'"{textwrap.shorten(text.text, 90, placeholder=" ...")}"'


def _closest(own: list[Text], every: list[Text]) -> list[tuple[Text, Text, float]]:
    """For every two owners their closest texts. `own` is how `every` begins."""
    vectors = _vectors([text.text for text in every])
    alike: Any = (vectors[: len(own)] @ vectors.T).tocoo()
    near = (alike.data >= PERHAPS) & (alike.row < alike.col)
    best: dict[tuple[str, ...], tuple[Text, Text, float]] = {}
    for a, b, cosine in sorted(zip(alike.row[near], alike.col[near], alike.data[near], strict=True)):
        one, two = every[a], every[b]
        pair = one.topic, one.owner, two.topic, two.owner
        if pair not in best or cosine > best[pair][2] + 1e-9:
            best[pair] = one, two, float(cosine)
    return list(best.values())


def _vectors(texts: list[str]) -> Any:
    """Half of a cosine is from n-grams of characters, which any language has; half from the first letters of words that
    carry content, which survive rewording."""
    import numpy as np
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

    def stems(text: str) -> list[str]:
        return [word[:5] for word in re.findall(r"\w+", text.lower()) if word not in ENGLISH_STOP_WORDS] or ["?"]

    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), sublinear_tf=True).fit_transform(texts)
    words = TfidfVectorizer(analyzer=stems, binary=True).fit_transform(texts)  # type: ignore[arg-type]
    return hstack([characters, words]).tocsr() / np.sqrt(2)
