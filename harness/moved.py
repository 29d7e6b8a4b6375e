"""The items that a run moved most: what a mean over items hides, with the question and the answers themselves.

An item's value is the mean of its variants, as everywhere; shown is the variant that moved most. Extremes are not typical:
the largest of many changes are large by chance too, so read the noise floor's beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.errors import InputError, choices
from harness.report.content import records
from harness.report.samples import common, readable

if TYPE_CHECKING:
    from harness.sharing import Shared

ITEM = ["topic", "item"]
KEYS = [*ITEM, "variant"]


@dataclass(frozen=True)
class Moved:
    """What `moved_most` found.

    Attributes:
        items: topic, item, before, after, change, variant, prompt, options, answer_before, answer_after; the largest first.
        noise: the largest change of any item between two measurements of the base; None where that was not measured.
    """

    run: str
    reference: str
    format: str
    items: pd.DataFrame
    noise: float | None

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "items": self.items.to_dict("records")}


def moved_most(shared: Shared, run: str | None, kind: str | None, topics: tuple[str, ...], count: int) -> Moved:
    """The items with the largest changes of one run from its reference.

    Args:
        shared: a comparison's folder (`harness.sharing.read_folder`).
        run: its label; the first fine-tune if not given.
        kind: pairs, open, statements or choices; the leading measure's if not given.
        topics: these alone; all if empty.

    Raises:
        InputError: an unknown run, format or topic, or a run that is the reference itself.
    """
    if count < 1:
        raise InputError(f"--top is {count}; expected at least 1.")
    runs = {one["label"]: one for one in shared.comparison["runs"]}
    roles = {label: one["role"] for label, one in runs.items()}
    label = run or next((name for name, role in roles.items() if role not in ("base", "noise")), None)
    if label not in runs:
        raise InputError(f"There is no run {choices([str(label)])} in this comparison; runs: {choices(runs)}.")
    reference = runs[label]["reference"]
    if reference in (None, label):
        raise InputError(f"{label} is what others are compared with; runs: {choices([r for r in runs if r != label])}.")
    kind = kind or shared.headline.partition(".")[0]
    asked = _of(shared.samples, "format", [kind])
    if topics:
        asked = _of(asked, "topic", list(topics))
    changes = _changes(asked, label, reference)
    again = next((name for name, role in roles.items() if role == "noise"), None)
    floor = _changes(asked, again, runs[again]["reference"])["change"].abs().max() if again else None
    first = changes.sort_values("change", key=abs, ascending=False, kind="stable").head(count)
    frame = common(set(map(str, shared.samples["prompt"])))
    shown = [_shown(asked, row, label, reference, kind, frame) for row in records(first)]
    noise = None if floor is None or pd.isna(floor) else float(floor)
    return Moved(str(label), str(reference), kind, pd.DataFrame(shown, columns=COLUMNS), noise)


COLUMNS = [*ITEM, "before", "after", "change", "variant", "prompt", "options", "answer_before", "answer_after"]


def _of(samples: pd.DataFrame, column: str, wanted: list[str]) -> pd.DataFrame:
    there = list(dict.fromkeys(samples[column]))
    if unknown := [name for name in wanted if name not in there]:
        raise InputError(f"Nothing with {column} {choices(unknown)} was asked; there is {choices(there)}.")
    return samples[samples[column].isin(wanted)]


def _changes(samples: pd.DataFrame, run: Any, reference: Any) -> pd.DataFrame:
    """topic, item, before, after, change; items without a value in either run are left out."""
    means = samples.groupby(["run", *ITEM], sort=False)["value"].mean()
    held = set(means.index.get_level_values("run"))
    if missing := [name for name in (run, reference) if name not in held]:
        raise InputError(f"{choices(missing)} was not asked any of these; there is {choices(held)}.")
    both = pd.DataFrame({"before": means[reference], "after": means[run]}).dropna()
    return both.assign(change=both["after"] - both["before"]).reset_index()


def _shown(
    samples: pd.DataFrame, item: dict[str, Any], run: Any, reference: Any, kind: str, frame: tuple[str, str]
) -> dict[str, Any]:
    rows = samples[(samples["topic"] == item["topic"]) & (samples["item"] == item["item"])]
    after, before = (rows[rows["run"] == name].set_index("variant") for name in (run, reference))
    variant = (after["value"] - before["value"]).abs().fillna(-1).idxmax()
    prompt = str(after.loc[variant, "prompt"]).removeprefix(frame[0]).removesuffix(frame[1])
    said = [readable(kind, str(one.loc[variant, "answer"])) for one in (before, after)]
    options = after.loc[variant, "options"] if "options" in after else "[]"
    about = {"variant": variant, "prompt": prompt, "options": options}
    return {**item, **about, "answer_before": said[0], "answer_after": said[1]}
