"""The keys of an experiment file with `analysis: localizers`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from harness.analysis import AnalysisSettings
from harness.config import MeasureSettings, Strict
from harness.recipe import Recipe
from plugins.localizer_scores import NAMES, Name

Share = float


class TuneSettings(Strict):
    """The fine-tune to make. `questions`: training questions of the topic (None: all)."""

    questions: int | None = Field(None, ge=2)
    recipe: Recipe = Recipe.model_validate({})
    seed: int = 0


class PatchDoses(Strict):
    """Which top shares are patched into the base on Torch, beside random neurons under these seeds."""

    shares: list[Share] = Field([0.02], min_length=1)
    random_seeds: list[int] = Field([0, 1], min_length=2)
    tasks: list[str] | None = None


class Settings(AnalysisSettings):
    """`topic`, `side`: what the fine-tune was on. `tune` makes it; or `tuned`, a folder with a model or an adapter.

    `prompts`: training questions that localisers read. Two or more `random_seeds`: how much random sets differ among
    themselves decides what counts. `overlap_share`: size of the sets whose overlap is reported.
    """

    topic: str
    side: Literal["left", "right"] = "right"
    tune: TuneSettings | None = None
    tuned: Path | None = None
    prompts: int = Field(16, ge=4)
    overlap_share: Share = Field(0.02, gt=0, le=1)
    localizers: list[Name] = Field([name for name in NAMES if name != "random"], min_length=1)
    shares: list[Share] = Field([0.001, 0.005, 0.02], min_length=1)
    random_seeds: list[int] = Field([0, 1], min_length=2)
    patch: PatchDoses | None = None
    measure: MeasureSettings
