"""What the JSON files hold that this tool writes and reads again: manifests of measurements, comparisons, localisations.

Anyone may have written them. Here are the parts that are read, with their types; what else stands there is kept as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.characters import Name
from harness.errors import InputError
from harness.topics.explain import explain

Role = Literal["base", "noise", "tuned", "inhibited", "control", "patched", "other"]
ROLES: tuple[str, ...] = get_args(Role)
Number = Annotated[float, Field(ge=-1e300, le=1e300)] | None
Count = Annotated[int, Field(ge=0, le=10**12)]


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Spec(Loose):
    """What a comparison reads of a measurement's spec."""

    label: Name | None = None
    role: Role | None = None
    reference: Name | None = None
    on_topic: Name | None = None
    limit: int | dict[str, int] | None = None
    model: str | None = None
    engine: str | None = None
    share: Number = None


class AxisEffect(Loose):
    format: str
    axis: str
    level: str
    value: Number
    low: Number
    high: Number
    spread: Number
    n: Count


class Agreement(Loose):
    judges: list[str]
    answers: Count
    alpha: Number
    alpha_sides: Number


class Measured(Loose):
    """The manifest of a measurement."""

    spec: Spec
    axes: list[AxisEffect] | None = None
    judges: Agreement | None = None
    diagnoses: list[str] | None = None
    command: list[str] | None = None
    versions: dict[str, str] = {}
    machine: dict[str, Any] | None = None
    documents: Count | None = None
    seconds: Number = None
    started: str | None = None


class Estimated(Loose):
    """A row of a comparison's frames."""

    run: str
    measure: str
    low: Number
    high: Number
    n: Count | None


class Stance(Estimated):
    topic: str
    value: Number


class Shift(Estimated):
    topic: str
    shift: Number


class Metric(Estimated):
    metric: str
    value: Number


class Compared(Loose):
    """A run of a comparison."""

    label: str
    role: Role
    reference: str | None
    model: str | None = None


class ComparisonFile(Loose):
    """comparison.json."""

    title: str
    headline: str
    verdict: list[str]
    warnings: list[str]
    measures: dict[str, dict[str, str]]
    runs: list[Compared]
    stance: list[Stance]
    shifts: list[Shift]
    summary: list[Metric]
    rates: list[dict[str, Any]]


class Located(Loose):
    """localization.json."""

    site: str
    token_kind: str
    tokens: dict[str, Count]
    top: Annotated[float, Field(ge=0, le=100)]
    normalized: bool
    general: Count
    selected: Count
    general_share: Number
    stability: Number = None
    per_layer: dict[str, list[Count]]
    rank_correlation: dict[str, Number]
    overlap: dict[str, dict[str, Number]]

    @model_validator(mode="after")
    def _square(self) -> Located:
        if any(set(row) != set(self.overlap) for row in self.overlap.values()):
            raise ValueError("`overlap` must hold every topic against every topic")
        return self


def check_shape(value: dict[str, Any], shape: type[BaseModel], file: Path, again: str) -> None:
    """Refuse a file that lacks what is read of it. `again`: what makes it anew.

    Raises:
        InputError: a key that is missing or holds something else.
    """
    try:
        shape.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{file}: {explain(error, shape)} {again}.") from None
