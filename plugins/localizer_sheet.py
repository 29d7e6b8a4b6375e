"""The page of a comparison of localisers: what they share, what suppressing and patching their neurons does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.report.sheet import Picture, Section, Sheet
from harness.report.tables import interval, number
from harness.statistics import LEVEL, Estimate
from plugins.dose_figure import picture, words
from plugins.dose_response import records

ENDS = {"change": ("change_low", "change_high"), "net": ("net_low", "net_high")}
SIGNED: Any = {
    "change": "signed",
    "random": "signed",
    "random_least": "signed",
    "random_most": "signed",
    "net": "signed",
}
PLAIN: Any = dict.fromkeys(("jaccard", "chance", "chance within layers"), "percent") | dict.fromkeys(
    ("rho", "rho within layers"), "signed"
)


@dataclass(frozen=True)
class Found:
    """Everything that was measured. `shift`: fine-tune less base by outcome; `floor`: the base measured again, by outcome."""

    agreement: pd.DataFrame
    stability: pd.DataFrame
    layers: pd.DataFrame
    shift: Mapping[str, Estimate]
    floor: Mapping[str, float]
    suppressed: pd.DataFrame
    patched: pd.DataFrame | None


def sheet(name: str, model: str, found: Found, topic: str, share: float, about: Mapping[str, Any]) -> Sheet:
    """The page."""
    sections = [
        Section(
            "suppressed",
            "Suppressing neurons in the fine-tune",
            f"Neurons set to 0. {READING}",
            _shown(found.suppressed),
            Picture(_finding(found.suppressed), words(found.suppressed), picture(found.suppressed)),
            ENDS,
            SIGNED,
        )
    ]
    if found.patched is not None:
        sections.append(
            Section(
                "patched",
                "Patching neurons into the base",
                f"The base takes the fine-tune's activations at the neurons. {READING}",
                _shown(found.patched),
                Picture(_finding(found.patched), words(found.patched), picture(found.patched)),
                ENDS,
                SIGNED,
            )
        )
    sections += [
        Section("agreement", f"Do they find the same {share:.1%}?", AGREEMENT, found.agreement, kinds=PLAIN),
        Section(
            "stability", "The same localiser on two halves of the questions", STABILITY, found.stability, kinds=PLAIN
        ),
        Section("layers", f"Layers of the top {share:.1%}", "", found.layers, kinds=dict.fromkeys(THIRDS, "percent")),  # type: ignore[arg-type]
    ]
    said = tuple(sentences(found, topic, share))
    return Sheet(f"Localisers side by side: {name}", f"{model}, tuned on {topic}", said, tuple(sections), about)


THIRDS = ("first third", "middle third", "last third")
READING = (
    "Change of nats per token: of the preference for the right answer (topics), of -log P (neutral_text: more is worse). Net "
    "is less the mean of as many random neurons in every layer. Told apart: the net interval is clear of zero, and the net "
    "is larger than the noise floor and than the chance band, within which another random set would lie in 95% of draws. "
    "Intervals are over items."
)
AGREEMENT = (
    "Jaccard index of the top sets beside what independent sets of these sizes share (chance), and independent sets with "
    "these counts in every layer; Spearman's rho of the scores over all neurons, and averaged over layers."
)
STABILITY = (
    "Two localisers cannot be expected to agree more than each agrees with itself on other questions. Each half has half the "
    "questions, so the ranking on all of them is steadier than this."
)


def sentences(found: Found, topic: str, share: float) -> list[str]:
    """What a reader must know, computed from the figures."""
    said = [_shift(found, topic)]
    for kind, table in (("Suppressing", found.suppressed), ("Patching", found.patched)):
        if table is not None:
            said += [_count(kind, table), *_each(kind, table, topic)]
    return [*said, *_overlap(found, share)]


def _shift(found: Found, topic: str) -> str:
    parts = []
    for outcome, shift in found.shift.items():
        moved = shift.excludes(0) and abs(shift.value) > found.floor[outcome]
        parts.append(f"{outcome} by {_value(shift)}{'' if moved else ' (cannot be told from no change)'}")
    floor = max(found.floor.values())
    return (
        f"Fine-tuning on {topic} moved {', '.join(parts)} nats per token; the base measured again moved by "
        f"{number(floor, 'plain')} at most."
    )


def _count(kind: str, table: pd.DataFrame) -> str:
    rows = records(table)
    told, tests = sum(r["told apart"] == "yes" for r in rows), len(rows)
    return (
        f"{kind} neurons: {told} of {tests} effects (localisers x shares x outcomes) are told apart from random neurons of "
        f"the same layers; up to about {tests * (1 - LEVEL):.1f} would be by chance if no localiser found anything."
    )


def _each(kind: str, table: pd.DataFrame, topic: str) -> list[str]:
    """One sentence per localiser, on the trained topic and on text at the largest share."""
    said = []
    for name, own in table.groupby("localizer", sort=False):
        rows = {str(r["outcome"]): r for r in records(own[own["share"] == own["share"].max()])}
        parts = []
        for outcome, row in rows.items():
            told = "" if row["told apart"] == "yes" else ", not told apart"
            around = interval(row["net_low"], row["net_high"])
            parts.append(f"{outcome} {number(row['change'])}, net {number(row['net'])} {around}{told}")
        first = next(iter(rows.values()))
        parts.sort(key=lambda part: not part.startswith(f"{topic} "))
        said.append(f"{kind} {name}'s top {first['share']:.1%} ({first['neurons']:,} neurons): {'; '.join(parts)}.")
    return said


def _overlap(found: Found, share: float) -> list[str]:
    pairs = [r for r in records(found.agreement) if "random" not in str(r["pair"]).split(" and ")]
    most, least = max(pairs, key=lambda r: r["jaccard"]), min(pairs, key=lambda r: r["jaccard"])
    self_ = [r for r in records(found.stability) if r["localizer"] != "random"]
    steady, loose = max(self_, key=lambda r: r["jaccard"]), min(self_, key=lambda r: r["jaccard"])
    sized = [r for r in pairs if "size" in str(r["pair"]).split(" and ")]
    names = ", ".join(f"{_other(r['pair'])} {number(r['rho'])} ({number(r['rho within layers'])})" for r in sized)
    return [
        f"Top {share:.1%} sets: most alike are {most['pair']} (Jaccard {number(most['jaccard'], 'percent')}), least alike "
        f"{least['pair']} ({number(least['jaccard'], 'percent')}); chance is {number(most['chance'], 'percent')}.",
        f"With themselves on two halves of the questions they agree between {number(loose['jaccard'], 'percent')} "
        f"({loose['localizer']}) and {number(steady['jaccard'], 'percent')} ({steady['localizer']}).",
        f"Rank correlation with plain activation size, over all neurons (within layers): {names}.",
    ]


def _other(pair: Any) -> str:
    a, b = str(pair).split(" and ")
    return a if b == "size" else b


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with one label each, as tables show them."""
    labels = [f"{r['localizer']} {100 * r['share']:g}%, {r['outcome']}" for r in records(table)]
    return pd.concat([pd.Series(labels, name="dose"), table.drop(columns=["localizer", "outcome", "share"])], axis=1)


def _finding(table: pd.DataFrame) -> str:
    told = [r for r in records(table) if r["told apart"] == "yes"]
    if not told:
        return "No localiser's neurons can be told from random neurons of the same layers"
    best = max(told, key=lambda r: abs(r["net"]))
    return (
        f"{len(told)} of {len(table)} effects are told apart; the largest: {best['localizer']} at {best['share']:.1%} on "
        f"{best['outcome']}, net {number(best['net'])}"
    )


def _value(estimate: Estimate) -> str:
    return f"{number(estimate.value)} {interval(estimate.low, estimate.high)}".strip()
