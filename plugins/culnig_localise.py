"""Scoring the culture questions country by country, and the neuron sets that follow: general, and specific to a country.

Neurons are found on questions that are not measured: of every file the first `measured` are asked, the next ones scored. All
countries have as many items, so a score over all of them is the mean of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from harness.errors import InputError, choices
from plugins.culnig import Masks, PerSite, difference, general, score, score_both, specific
from plugins.culnig_items import Question, culture_folder, items, read_questions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Material:
    """Questions to find neurons on, by country (the name of its file)."""

    culture: dict[str, list[Question]]
    copying: dict[str, list[Question]]


@dataclass(frozen=True)
class Found:
    """Neuron sets by name, and the mean probability of the gold token by task and country."""

    sets: dict[str, Masks]
    probability: dict[str, dict[str, float]]


def country_names() -> list[str]:
    """The countries that have items, by the names of their files."""
    return sorted(path.stem for path in culture_folder().glob("*.jsonl"))


def material(measured: int, count: int, copying: int) -> Material:
    """`count` questions of every country after the first `measured`, and the last `copying` passages of each.

    Raises:
        InputError: fewer questions than that, so that some would be measured too.
    """
    culture, passages = {}, {}
    copied = read_questions(culture_folder() / "copying" / "copying.jsonl")[measured:]
    for name in country_names():
        read = read_questions(culture_folder() / f"{name}.jsonl")
        culture[name] = read[measured : measured + count]
        own = [question for question in copied if question.country == read[0].country]
        passages[name] = own[-copying:]
        if len(culture[name]) < count or len(passages[name]) < copying:
            raise InputError(
                f"Country {name} has {len(read)} questions and, beyond the measured ones, {len(own)} passages; asked for "
                f"were {measured} to measure (limit), then {count} (localise.items) and {copying} (localise.copying) to find "
                "neurons on. Lower one of the three: what finds the neurons must not be measured."
            )
    return Material(culture, passages)


def localise(
    model: PreTrainedModel,
    tokenizer: Any,
    chat: bool,
    given: Material,
    countries: Sequence[str] = (),
    advance: Callable[[int], object] = lambda _: None,
) -> Found:
    """The sets `general`, `general-compatible` (the public code's padding) and `specific-COUNTRY`.

    Raises:
        InputError: an unknown country, or as `plugins.culnig.score`.
        ProofError: as `plugins.culnig.score`.
    """
    if unknown := set(countries) - set(given.culture):
        raise InputError(f"There are no items of country {choices(unknown)}; countries: {choices(given.culture)}.")
    plain: dict[str, PerSite] = {}
    padded: dict[str, PerSite] = {}
    copied: dict[str, PerSite] = {}
    said: dict[str, dict[str, float]] = {"culture": {}, "noquestion": {}, "copying": {}}
    for name, asked in given.culture.items():
        culture = score_both(model, items(asked, tokenizer, chat), advance=advance)
        bare = items([question.without_text() for question in asked], tokenizer, chat)
        control = score_both(model, bare, clip_control=True, advance=advance)
        copying = score(model, items(given.copying[name], tokenizer, chat), advance=advance)
        plain[name] = difference(culture[0].sites, control[0].sites)
        padded[name] = difference(culture[1].sites, control[1].sites)
        copied[name] = copying.sites
        for task, scores in (("culture", culture[0]), ("noquestion", control[0]), ("copying", copying)):
            said[task][name] = scores.probability
    none: PerSite = {site: torch.zeros_like(s) for site, s in mean(plain).items()}  # the control is subtracted already
    sets: dict[str, Masks] = {
        "general": general(mean(plain), none, mean(copied)),
        "general-unfiltered": general(mean(plain), none),
        "general-compatible": general(mean(padded), none, mean(copied)),
    }
    sets |= {f"specific-{name}": specific(name, plain, copied[name]) for name in countries}
    return Found(sets, said)


def mean(scores: dict[str, PerSite]) -> PerSite:
    """Site by site the mean over countries with as many items."""
    rows = list(scores.values())
    return {site: torch.stack([row[site] for row in rows]).mean(0) for site in rows[0]}
