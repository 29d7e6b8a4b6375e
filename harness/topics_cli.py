"""Starting and judging topic files (`stance topics new`, `stance topics check`)."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from harness.errors import InputError
from harness.topics import LM_EVAL_CLASS, TEMPLATE, Topic, load_topic
from harness.wording import normalised

WORDS = (30, 60)
LENGTH_RATIO = 1.1
ADVISED_ITEMS = 40


def new_topic(name: str, folder: Path) -> Path:
    """Write the commented template; an existing file is never overwritten.

    Raises:
        InputError: a name that is no topic name, or a file that exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(f"{name!r} is no topic name; use lower-case letters, digits and underscores, such as climate.")
    path = folder / f"{name}.yaml"
    if path.exists():
        raise InputError(f"{path} exists already and is not overwritten; edit it, or choose another name.")
    folder.mkdir(parents=True, exist_ok=True)
    title = name.replace("_", " ").capitalize()
    path.write_text(TEMPLATE.format(name=name, title=title, cls=LM_EVAL_CLASS), encoding="utf-8")
    return path


def check_topic(path: Path) -> tuple[list[str], bool]:
    """What the file holds, advice, and problems; False when a problem makes its figures unfair.

    Raises:
        InputError: the file cannot be used at all.
    """
    topic = load_topic(path)
    measure, train = topic.split("measure"), topic.split("train")
    lines = [
        f"{topic.task}: {len(measure)} measuring and {len(train)} training items, {len(topic.statements)} statements, "
        f"{len({i.sub_issue for i in topic.items})} sub-issues"
    ]
    problems = _problems(topic)
    advice = []
    if len(measure) < ADVISED_ITEMS:
        advice.append(f"{len(measure)} measuring items give wide intervals; the packaged topics have {ADVISED_ITEMS}.")
    outside = [i.id for i in topic.items if not all(_fits(text) for text in (i.left, i.right))]
    if outside:
        advice.append(
            f"{len(outside)} items have an answer outside {WORDS[0]} to {WORDS[1]} words (first: {outside[0]})."
        )
    lines += [f"advice: {text}" for text in advice] + [f"problem: {text}" for text in problems]
    lines.append("not ready: mend the problems above." if problems else "good: it can be run as it stands.")
    return lines, not problems


def _fits(text: str) -> bool:
    return WORDS[0] <= len(text.split()) <= WORDS[1]


def _problems(topic: Topic) -> list[str]:
    problems = []
    if any("Replace this with" in i.left + i.right for i in topic.items):
        problems.append("answers of the template are still in place.")
    left, right = (statistics.mean(len(getattr(i, side).split()) for i in topic.items) for side in ("left", "right"))
    if max(left, right) > LENGTH_RATIO * min(left, right):
        problems.append(
            f"answers are {left:.0f} words long on the left and {right:.0f} on the right; they must be equal."
        )
    measured = {normalised(i.question) for i in topic.split("measure")}
    if both := [i.id for i in topic.split("train") if normalised(i.question) in measured]:
        problems.append(f"training item {both[0]} asks a measuring item's question ({len(both)} in all).")
    return problems
