"""A comparison in plain sentences: what moved beyond the noise floor, and what a mitigation did net of its control."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.paired import shares_controls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.compare import Measured


def noise_floor(shifts: pd.DataFrame, measure: str) -> float | None:
    """The largest |shift| between two measurements of the base, or None where it was not measured."""
    rows = shifts[(shifts["role"] == "noise") & (shifts["measure"] == measure)]
    return None if rows.empty else float(rows["shift"].abs().max())


def beyond(row: Mapping[str, Any] | pd.Series, floor: float | None) -> bool:
    """Whether the interval of a shift lies wholly beyond the noise floor, or beyond zero where that was not measured."""
    limit = floor or 0.0
    return bool(row["low"] > limit or row["high"] < -limit)


def verdict(
    shifts: pd.DataFrame, summary: pd.DataFrame, measures: dict[str, dict[str, str]], headline: str, topics: list[str]
) -> list[str]:
    """Per tuned topic: what each fine-tune moved, and what each mitigation did by the headline measure.

    One fine-tune on a topic is described by every measure, several by the headline measure alone.
    """
    sentences = []
    for topic in topics:
        mine = _runs_on(shifts, topic)
        tuned = shifts[(shifts["role"] == "tuned") & shifts["run"].isin(mine)]
        several = tuned["run"].nunique() > 1
        for (run, name), rows in tuned.groupby(["run", "measure"], sort=False):
            if name == headline or not several:
                title, unit = measures[str(name)]["title"], measures[str(name)]["unit"]
                said = _moved(rows, topic, unit, noise_floor(shifts, str(name)))
                sentences.append(f"{title}, {run}: {said}" if several else f"{title}: {said}")
        sentences += _mitigated(summary[(summary["measure"] == headline) & summary["run"].isin(mine)])
    return sentences or ["The runs differ as the table shows; none of them says which topic it was tuned on."]


def _runs_on(shifts: pd.DataFrame, topic: str) -> set[str]:
    return set(shifts[(shifts["topic"] == topic) & shifts["on_topic"]]["run"])


def _interval(row: pd.Series, value: str = "value", scale: float = 1.0, digits: int = 3, plus: bool = True) -> str:
    sign = "+" if plus else ""
    numbers = [f"{scale * row[key]:{sign}.{digits}f}" for key in (value, "low", "high")]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def _moved(tuned: pd.DataFrame, topic: str, unit: str, floor: float | None) -> str:
    off = tuned[~tuned["on_topic"] & ~tuned["control"]]
    moved = [row["topic"] for _, row in off.iterrows() if beyond(row, floor) and row["p_holm"] < 0.05]
    against = "zero (the noise floor was not measured)" if floor is None else f"the noise floor of {floor:.3f}"
    named = f" ({', '.join(moved)})" if moved else ""
    drift = tuned[tuned["control"]]
    others = f"{len(moved)} of {len(off)} other topics{named} by more than {against} (Holm-corrected p below 0.05)."
    if not len(off):
        others = "no other topic was asked about."
    return f"{_moved_itself(tuned, topic, unit, floor)}{others}" + "".join(
        f" The control {row['topic']}, which has no politics in it, moved by {_interval(row, 'shift')}."
        for _, row in drift.iterrows()
    )


def _moved_itself(tuned: pd.DataFrame, topic: str, unit: str, floor: float | None) -> str:
    """The tuned topic was named beforehand, so its interval alone decides and nothing is corrected for the others."""
    own = tuned[tuned["on_topic"]]
    if own.empty:
        return f"tuning on {topic}, which this measure did not ask about, moved "
    on = own.iloc[0]
    found = f"{_interval(on, 'shift')} {unit}"
    if beyond(on, floor):
        return f"tuning on {topic} moved {topic} by {found} and "
    least = f"; a shift of {on['mde']:.3f} could have been found" if on["mde"] > 0 else ""  # 0: all items alike
    return f"tuning on {topic} did not clearly move {topic} ({found}{least}), and it moved "


def _mitigated(summary: pd.DataFrame) -> list[str]:
    sentences = []
    for run, rows in summary[summary["role"] == "inhibited"].groupby("run", sort=False):
        found = {row["metric"]: row for _, row in rows.iterrows()}
        if "reduction" not in found:
            continue
        if not math.isfinite(found["reduction"]["value"]):
            sentences.append(f"{run}: the plain fine-tune moved no other topic, so there is no spill-over to reduce.")
            continue
        text = f"{run}: off-topic spill-over fell by {_interval(found['reduction'], scale=100, digits=0, plus=False)} %"
        if "kept" in found:
            text += f" with {_interval(found['kept'], scale=100, digits=0, plus=False)} % of the on-topic shift kept"
        if "net_reduction" in found:
            net = found["net_reduction"]
            points = _interval(net, scale=100, digits=0)
            if net["low"] > 0:
                text += f"; net of random neurons held {points} points: more than its control."
            elif net["high"] < 0:
                text += f"; net of random neurons held {points} points: less than its control."
            else:
                text += f"; net of random neurons held {points} points: not distinguishable from its control."
        else:
            text += "; no random control was run, so this cannot be called an effect of these neurons."
        sentences.append(text)
    return sentences


def limit_text(limit: int | dict[str, int]) -> str:
    """`8`, or `pairs 60, open 24`."""
    return ", ".join(f"{kind} {n}" for kind, n in limit.items()) if isinstance(limit, dict) else str(limit)


def warnings_of(runs: list[Measured]) -> list[str]:
    """What a reader must know before believing a number."""
    found = []
    partial: dict[str, list[str]] = {}
    for run in runs:
        if run.partial:
            partial.setdefault(limit_text(run.manifest["spec"]["limit"]), []).append(run.label)
    for limit, labels in partial.items():
        found.append(f"Partial measurement ({limit} items per task at most): {', '.join(labels)}.")
    if not any(run.role == "noise" for run in runs):
        found.append("The noise floor was not measured: no second measurement of the base is among the runs.")
    if any(run.role == "inhibited" for run in runs) and not any(run.role == "control" for run in runs):
        found.append("No random control is among the runs, so no reduction here can be credited to the neurons.")
    found += _unjudged(runs)
    engines = {run.manifest["spec"].get("engine") for run in runs if run.role != "patched"}
    if len(engines) > 1:
        found.append("Runs were measured on different engines; part of their difference is the engine's.")
    return found


def _unjudged(runs: list[Measured]) -> list[str]:
    """What is left out because it cannot be told which run another belongs to."""
    found = []
    held = [run for run in runs if run.role == "inhibited"]
    for topic in sorted({run.on_topic for run in held if run.on_topic}):
        plain = [run.label for run in runs if run.role == "tuned" and run.on_topic == topic]
        if len(plain) > 1:
            found.append(
                f"{topic} has {len(plain)} plain fine-tunes ({', '.join(plain)}), so no reduction and no kept share is "
                "given for it: compare each with its own mitigations."
            )
        unclear = any(shares_controls(run, held) for run in held if run.on_topic == topic)
        if unclear and any(run.role == "control" and run.on_topic == topic for run in runs):
            found.append(
                f"{topic} has several held runs and nothing says which control is whose, so no reduction net of controls "
                "is given for them: compare each with its own."
            )
    return found
