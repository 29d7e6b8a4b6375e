"""What a study would do: its steps before any of them is carried out, and what of them lies in a folder already.

A study's `plan` gives one `PlannedStep` per run folder; like steps stand in one `Row`. A finished folder counts as there
where what its manifest says of `spec` is what the plan says; otherwise the study would stop at it, and the row says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from harness.errors import InputError

State = Literal["there", "begun", "to do", "made otherwise"]
FORWARD, BACKWARD, LORA, FULL = 2.0, 4.0, 4.0, 6.0


@dataclass(frozen=True)
class Pass:
    """Tokens through the model, at so many floating-point operations per parameter and token.

    FORWARD 2: a multiplication and an addition. FULL 6: backward as much again for the gradients of the activations, and
    again for those of the weights. LORA 4: the weights are frozen, so their gradients are left out; the adapter's own, a few
    percent, are not counted. BACKWARD 4: forward and back to the activations alone. A model read twice is two passes.
    """

    tokens: float
    flops: float = FORWARD


@dataclass(frozen=True)
class PlannedStep:
    """One run folder. `name`: of the row it stands in, with like steps.

    Attributes:
        kind: as its manifest will say.
        folder: under the study's.
        documents: rows that are asked or trained on.
        passes: what goes through the model.
        dtype: in which the model runs: float32 or bfloat16.
        writes: bytes in its folder; None where nothing is known of the model. `caches`: bytes in the cache of weights.
        spec: what its manifest will say of how it was made, as far as it is known beforehand.
    """

    name: str
    kind: str
    folder: str
    documents: int = 0
    passes: tuple[Pass, ...] = ()
    dtype: str = "float32"
    writes: int | None = 0
    caches: int | None = 0
    spec: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> float:
        return sum(one.tokens for one in self.passes)

    @property
    def work(self) -> float:
        """Floating-point operations per parameter."""
        return sum(one.tokens * one.flops for one in self.passes)


@dataclass(frozen=True)
class Found:
    """What lies in a step's folder: `seconds` of a finished run, `differs` where it was made otherwise."""

    state: State
    seconds: float | None = None
    differs: str = ""


@dataclass(frozen=True)
class Row:
    """Like steps. `seconds`: of one of them; `rests_on`: what that figure rests on."""

    name: str
    kind: str
    steps: tuple[PlannedStep, ...]
    found: tuple[Found, ...]
    seconds: float | None
    rests_on: str

    @property
    def left(self) -> list[PlannedStep]:
        """Steps still to be carried out."""
        return [step for step, found in zip(self.steps, self.found, strict=True) if found.state != "there"]

    def number(self, state: State) -> int:
        return sum(found.state == state for found in self.found)


def look(step: PlannedStep, out: Path) -> Found:
    """What is there of a step. A step that turned out to be unneeded moves the numbers of those after it."""
    folder = out / step.folder
    number, _, rest = step.folder.partition("-")
    if number.isdigit() and not folder.is_dir() and len(moved := list(out.glob(f"[0-9]*-{rest}"))) == 1:
        folder = moved[0]
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return Found("begun" if folder.is_dir() else "to do")
    try:
        read = json.loads(manifest.read_text(encoding="utf-8"))
        kind, spec, seconds = str(read["kind"]), dict(read["spec"]), float(read["seconds"])
    except (ValueError, KeyError, TypeError):
        return Found("made otherwise", differs="its manifest.json cannot be read")
    if kind != step.kind:
        return Found("made otherwise", differs=f"{kind} there, {step.kind} now")
    expected = json.loads(json.dumps(dict(step.spec), default=str))
    if wrong := [key for key, value in expected.items() if spec.get(key) != value]:
        said = (f"{key}: {_short(spec.get(key))} there, {_short(expected[key])} now" for key in wrong)
        return Found("made otherwise", differs="; ".join(said))
    return Found("there", None if _from_cache(read) else seconds)


def rows(steps: Sequence[PlannedStep], out: Path, seconds: Callable[[PlannedStep], float | None]) -> list[Row]:
    """Like steps together, in the order of their first, with times.

    A row's time is the median of its finished runs; else that of the kind's finished runs per unit of work times its work;
    else what `seconds` says of it.
    """
    found = {step.folder: look(step, out) for step in steps}
    pace: dict[tuple[str, str], list[float]] = {}
    for step in steps:
        taken = found[step.folder].seconds
        if taken is not None and step.work:
            pace.setdefault((step.kind, step.dtype), []).append(taken / step.work)
    groups: dict[tuple[str, str], list[PlannedStep]] = {}
    for step in steps:
        groups.setdefault((step.name, step.kind), []).append(step)
    made = []
    for (name, kind), some in groups.items():
        looked = tuple(found[step.folder] for step in some)
        taken = [one.seconds for one in looked if one.seconds is not None]
        paces = pace.get((kind, some[0].dtype), [])
        if taken:
            each, rests_on = median(taken), "finished runs"
        elif paces and some[0].work:
            each, rests_on = median(paces) * sum(s.work for s in some) / len(some), f"finished {kind} runs"
        else:
            times = [time for step in some if (time := seconds(step)) is not None]
            each, rests_on = (sum(times) / len(times), "arithmetic") if times else (None, "nothing")
        made.append(Row(name, kind, tuple(some), looked, each, rests_on))
    return made


@contextmanager
def without_download() -> Iterator[None]:
    """Models of the hub are looked for on this machine only."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def check(prepare: Callable[[Any, Path], object], settings: Any, out: Path) -> None:
    """A study's own checks before it begins; a model of the hub that is not on this machine is left to the real run.

    Raises:
        InputError: as `prepare`.
    """
    try:
        with without_download():
            prepare(settings, out)
    except InputError as error:
        if not is_elsewhere(error):
            raise


def is_elsewhere(error: InputError) -> bool:
    """Whether an error says no more than that a model of the hub is not on this machine."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    return isinstance(error.__context__, LocalEntryNotFoundError)


def _from_cache(manifest: Mapping[str, Any]) -> bool:
    """Whether more than a tenth of the answers had been kept from an earlier run, so that the time says little."""
    requests = manifest.get("requests") or {}
    return 9 * requests.get("from_cache", 0) > requests.get("asked", 0)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
