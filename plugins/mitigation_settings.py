"""The keys of a file with `analysis: mitigations`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from harness.analysis import AnalysisSettings
from harness.characters import Name
from harness.config import LocalizeSettings, MeasureSettings, Strict
from harness.recipe import Recipe

Side = Literal["left", "right"]


class TrainCells(Strict):
    """Every topic to every side under every seed is one cell. `questions`: training questions per topic (None: all).

    `processes`: of every fine-tune, a GPU each, and `sharded`: with the weights shared out; one with an anchor takes one.
    """

    topics: list[str] = Field(min_length=1)
    sides: list[Side] = Field(["right", "left"], min_length=1)
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    questions: int | None = Field(None, ge=2)
    recipe: Recipe = Recipe.model_validate({})
    processes: int = Field(1, ge=1)
    sharded: bool = False


class Candidate(Strict):
    """One mitigation under a label. `control`: the label of its matched control.

    `cells`: patterns (fnmatch) of the cells it is carried out in, such as `immigration-*-0`, where time is short.
    """

    use: str
    label: Name
    options: dict[str, Any] = Field({})
    control: str | None = None
    cells: list[str] = Field(["*"], min_length=1)


class Settings(AnalysisSettings):
    """`seen`: trained topic -> other topics that its mitigations may draw on."""

    train: TrainCells
    seen: dict[str, list[str]]
    measure: MeasureSettings
    localize: LocalizeSettings = LocalizeSettings.model_validate({})
    mitigations: list[Candidate] = Field(min_length=1)
