"""Ratings of vignettes: sampled answers read as whole numbers, and the expected value over the scale (arXiv 2510.12229).

Two scorers of one plain-text prompt that ends in `Answer:`, the same tokens for every model that is compared.

Trials: per trial one temperature from U(0.85, 1.15), shared by all vignettes of the trial (the paper draws one for each
answer), at most 10 new tokens, and the first whole number from 0 to 10 is the rating. An answer without one is missing,
and the share that could be read is a result. Temperatures and the sampling seeds of trial and vignette depend on `seed`
alone, so two models asked with one seed share their trials, and another seed is a repetition of the whole.

Expected value: sum of k P(k) / sum of P(k) over the strings `0` .. `10`, P being the probability of the whole string
after the prompt. Where a tokenizer writes 10 as 1 and 0, the string `1` also begins `10` and P(1) counts both, as
full-string scoring does.

Says nothing where almost no answer can be read (see the parse rate) or the scale has almost no mass.

    trials = rate(engine, load_vignettes(), trials=10, seed=0)
    scores = expected(engine, load_vignettes())
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray as Array

from harness import statistics as st
from harness.errors import InputError
from plugins.knobe import CONDITIONS
from plugins.knobe_vignettes import Condition

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.engines import Engine, Tokens

TEMPERATURES = (0.85, 1.15)
NEW_TOKENS = 10
SEEDS = 10_000_000  # sampling seeds set aside for one value of `seed`
SCALE_VALUES = range(11)
# A digit beside a point, a comma or a minus belongs to another kind of number.
_WHOLE = re.compile(r"(?<![\d.,\-\N{MINUS SIGN}])(?:10|\d)(?!\d|[.,]\d)")


class Asked(Protocol):
    """A pair of texts under one id."""

    @property
    def id(self) -> str: ...

    def prompt(self, condition: Condition) -> str: ...


@dataclass(frozen=True)
class Candidates:
    """A prompt's tokens, and those of each string of the scale as they follow it."""

    prompt: Tokens
    answers: tuple[Tokens, ...]

    @property
    def nested(self) -> bool:
        """Whether `1` is the beginning of `10` in tokens too."""
        return self.answers[10][: len(self.answers[1])] == self.answers[1]


def first_rating(text: str) -> float:
    """The first whole number from 0 to 10 that is written in digits and is no part of another number; NaN without one."""
    found = _WHOLE.search(text)
    return float(found.group()) if found else float("nan")


def temperatures(trials: int, seed: int) -> Float[Array, " k"]:
    """One temperature per trial, uniform over TEMPERATURES."""
    return np.random.default_rng(seed).uniform(*TEMPERATURES, size=trials)


def cells_of(vignettes: Sequence[Asked]) -> list[tuple[str, Condition]]:
    """(id, condition) of every text, harm before help."""
    return [(v.id, condition) for v in vignettes for condition in CONDITIONS]


def prompts_of(tokenizer: PreTrainedTokenizerBase, vignettes: Sequence[Asked]) -> list[Tokens]:
    """Token ids of every text's prompt, in the order of `cells_of`, with the tokens a text begins with, if any."""
    texts = [v.prompt(condition) for v in vignettes for condition in CONDITIONS]
    return [list(tokenizer(text)["input_ids"]) for text in texts]  # type: ignore[arg-type]


def candidates(tokenizer: PreTrainedTokenizerBase, prompt: str) -> Candidates:
    """The scale's strings as tokens after a prompt, with the blank that precedes a number.

    Raises:
        InputError: a tokenizer that joins the end of the prompt with the answer, or gives two answers the same tokens.
    """
    context: Tokens = list(tokenizer(prompt)["input_ids"])  # type: ignore[arg-type]
    wholes: list[Tokens] = [list(tokenizer(f"{prompt} {k}")["input_ids"]) for k in SCALE_VALUES]  # type: ignore[arg-type]
    joined = [k for k, whole in zip(SCALE_VALUES, wholes, strict=True) if whole[: len(context)] != context]
    answers = tuple(whole[len(context) :] for whole in wholes)
    if joined or len({tuple(answer) for answer in answers}) < len(answers) or not all(answers):
        raise InputError(
            f"The tokenizer does not write the ratings 0 to 10 as tokens of their own after {prompt[-20:]!r} "
            f"(joined or equal: {joined or 'equal tokens'}); expected eleven different continuations. Use trials alone."
        )
    return Candidates(context, answers)


def rate(engine: Engine, vignettes: Sequence[Asked], trials: int, seed: int = 0) -> pd.DataFrame:
    """Sampled ratings; all texts of one trial are asked in one call.

    Returns:
        One row per trial, item and condition: trial, temperature, item, condition, answer (the text), rating (0 to 10,
        NaN where none could be read).

    Raises:
        InputError: fewer than one trial, no vignettes, or a prompt longer than the engine takes.
    """
    if trials < 1 or not vignettes:
        raise InputError(
            f"{trials} trials of {len(vignettes)} vignettes were asked for; expected at least one of each."
        )
    cells, prompts, rows = cells_of(vignettes), prompts_of(engine.tokenizer, vignettes), []
    for trial, temperature in enumerate(temperatures(trials, seed).tolist()):
        # Engines add a prompt's place to the seed, so that every trial needs a stretch of seeds of its own.
        begin = seed * SEEDS + trial * len(prompts)
        answers = engine.generate(prompts, NEW_TOKENS, [], temperature, begin)
        for (item, condition), answer in zip(cells, answers, strict=True):
            rows.append((trial, temperature, item, condition, answer, first_rating(answer)))
    return pd.DataFrame(rows, columns=["trial", "temperature", "item", "condition", "answer", "rating"])


def expected(engine: Engine, vignettes: Sequence[Asked]) -> pd.DataFrame:
    """Expected ratings over the eleven strings of the scale.

    Returns:
        One row per item and condition: item, condition, rating (0 to 10), mass (probability that the answer begins with
        any of the strings).

    Raises:
        InputError: as `candidates`, or a prompt longer than the engine takes.
    """
    asked = [candidates(engine.tokenizer, v.prompt(c)) for v in vignettes for c in CONDITIONS]
    logprobs = answer_scores(engine, asked)
    values, masses = expectation(logprobs)
    doubled = np.where([one.nested for one in asked], np.exp(logprobs[:, 10]), 0.0)
    cells = zip(cells_of(vignettes), values, masses - doubled, strict=True)
    return pd.DataFrame([(*cell, v, m) for cell, v, m in cells], columns=["item", "condition", "rating", "mass"])


def answer_scores(engine: Engine, asked: Sequence[Candidates]) -> Float[Array, "n k"]:
    """Log-probability of every answer after its prompt, in nats, as `score_continuations` gives it.

    Token by token instead, so that answers which begin alike are computed once: three short requests for eleven answers of
    a tokenizer that writes single digits.
    """
    wanted: dict[tuple[int, ...], dict[int, float]] = {}
    for one in asked:
        for answer in one.answers:
            for place, token in enumerate(answer):
                wanted.setdefault((*one.prompt, *answer[:place]), {})[token] = 0.0
    requests = [(list(context), list(tokens)) for context, tokens in wanted.items()]
    for (context, tokens), scores in zip(requests, engine.score_choices(requests), strict=True):
        wanted[tuple(context)] = dict(zip(tokens, scores, strict=True))
    sums = [
        [sum(wanted[(*one.prompt, *answer[:n])][token] for n, token in enumerate(answer)) for answer in one.answers]
        for one in asked
    ]
    return np.array(sums)


def expectation(logprobs: Float[Array, "n k"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Log-probabilities of the strings 0 to 10 in nats -> (expected rating, sum of the strings' probabilities)."""
    shares = np.exp(logprobs - logprobs.max(axis=1, keepdims=True))
    values = shares @ np.arange(logprobs.shape[1], dtype=float) / shares.sum(axis=1)
    return values, np.exp(logprobs).sum(axis=1)


def parse_rates(trials: pd.DataFrame) -> pd.DataFrame:
    """Share of answers that could be read: model, condition, answers (count), parsed (count), rate; models as they come."""
    read = trials.assign(parsed=trials["rating"].notna())
    table = read.groupby(["model", "condition"], sort=False)["parsed"].agg(answers="size", parsed="sum").reset_index()
    return table.assign(rate=table["parsed"] / table["answers"])


def by_item(trials: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Trials averaged into item, condition, model, rating, for `plugins.knobe`; and the items left out.

    An item is left out for all models where any of its cells has no rating at all.
    """
    means = trials.groupby(["item", "condition", "model"], sort=False)["rating"].mean().reset_index()
    missing = sorted(set(means.loc[means["rating"].isna(), "item"]))
    return means[~means["item"].isin(missing)].reset_index(drop=True), missing


def agreement(trials: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Pearson's r of mean sampled and expected rating, over texts, and of their differences harm - help, over items.

    Both tables have item, condition, model, rating. Returns model, r_texts, texts, r_items, items; NaN below three.
    """
    keys = ["item", "condition", "model"]
    mean = trials.groupby(keys, sort=False)["rating"].mean().rename("sampled").reset_index()
    both = mean.merge(scores[[*keys, "rating"]], on=keys)
    rows = []
    for model, part in both.groupby("model", sort=False):
        wide = part.pivot(index="item", columns="condition", values=["sampled", "rating"])
        sampled, value = (wide[name]["harm"] - wide[name]["help"] for name in ("sampled", "rating"))
        texts = st.correlation(part["sampled"].to_numpy(float), part["rating"].to_numpy(float))
        items = st.correlation(sampled.to_numpy(float), value.to_numpy(float))
        rows.append((model, texts, int(part["sampled"].notna().sum()), items, int(sampled.notna().sum())))
    return pd.DataFrame(rows, columns=["model", "r_texts", "texts", "r_items", "items"])
