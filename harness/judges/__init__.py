"""Judges: which side an open answer takes. No answer, refusal and nonsense are labels of their own, never dropped.

| name | what it is |
| --- | --- |
| `embedded` | a text classifier fitted on this project's own answers; offline, thousands of answers a second |
| `local:MODEL` | any instruction model through the engine, constrained to the labels |
| `endpoint:MODEL@URL` | any OpenAI-compatible endpoint |

Several, separated by commas, judge side by side; the first gives the stance, all of them the agreement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from harness import scoring
from harness.characters import checked_name
from harness.errors import InputError
from harness.topics import Topic

SIDES = ("left", "right", "neutral")
LABELS = (*SIDES, "refused", "off_topic", "empty", "unparsed")
EMBEDDED = "embedded"
KINDS = "embedded, local:MODEL, endpoint:MODEL@URL"


@dataclass(frozen=True)
class Judgement:
    """One of LABELS, and log-probabilities (nats) of the labels where the judge has them."""

    label: str
    logprobs: dict[str, float] = field(default_factory=dict)


class Judge(Protocol):
    """`name` goes into manifests and beside every label it gave."""

    name: str

    def judge(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """A judgement of every answer, in order."""
        ...

    def close(self) -> None:
        """Give memory or connections back; the judge cannot be used afterwards."""
        ...


def as_values(label: str) -> dict[str, float]:
    """A label as the metrics of an open answer: its stance, and 1 at its own rate."""
    stance = scoring.judged_stance(label)
    return {"stance": stance, "abs_stance": stance, **{name: float(name == label) for name in LABELS}}


def names(spec: str) -> list[str]:
    """The judges a specification names, in order.

    Raises:
        InputError: none, one twice, or a name of no kind.
    """
    found = [name.strip() for name in spec.split(",") if name.strip()]
    if not found or len(set(found)) < len(found):
        raise InputError(f"--judge is {spec!r}; expected one or more different judges, separated by commas: {KINDS}.")
    for name in found:
        checked_name(name, "--judge")
        kind, _, rest = name.partition(":")
        if name != EMBEDDED and not (kind in ("local", "endpoint") and rest):
            raise InputError(f"There is no judge {name!r}; judges: {KINDS}.")
        if kind == "endpoint" and "://" not in rest.partition("@")[2]:
            raise InputError(f"Judge {name!r} names no address; expected endpoint:MODEL@https://HOST/v1.")
    return found


def check(name: str) -> None:
    """Refuse a judge that could not be started, before anything is measured.

    Raises:
        InputError: a model that is not here, an address that is none, or a setting that cannot be used.
    """
    kind, _, rest = name.partition(":")
    if kind == "local":
        from harness.models import resolve

        resolve(rest)
    elif kind == "endpoint":
        get(name).close()


def get(name: str, topics: tuple[Topic, ...] = ()) -> Judge:
    """One judge by name; `topics` with training answers of their own teach the embedded one more.

    Raises:
        InputError: no judge of that name, or it cannot be started.
    """
    (name,) = names(name)
    kind, _, rest = name.partition(":")
    if kind == "local":
        from harness.judges.local import LocalJudge

        return LocalJudge(rest)
    if kind == "endpoint":
        from harness.judges.endpoint import EndpointJudge

        model, _, url = rest.partition("@")
        return EndpointJudge(model, url)
    from harness.judges.embedded import embedded

    return embedded(topics)
