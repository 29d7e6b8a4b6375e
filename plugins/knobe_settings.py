"""Keys of an experiment file with `analysis: knobe`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from harness.analysis import AnalysisSettings
from harness.config import Strict
from harness.recipe import Recipe
from plugins.layer_patching import LEAST
from plugins.layer_patching_hooks import PATCH_SITES, PatchSite
from plugins.layer_patching_sweep import BATCH_TOKENS, Control


class TuneSettings(Strict):
    """A fine-tune of one's own, on one side of a topic's training answers."""

    topic: str
    side: Literal["left", "right"] = "right"
    recipe: Recipe = Recipe.model_validate({})
    seed: int = 0


class SweepSettings(Strict):
    """Which blocks are patched. `every`: step between them, the last always among them; `layers` names them instead."""

    sites: list[PatchSite] = Field(list(PATCH_SITES), min_length=1)
    every: int = Field(1, ge=1)
    layers: list[int] | None = None
    pairs: int | None = Field(None, ge=2)
    controls: list[Control] = Field(["shuffled"])
    seeds: list[int] = Field([0], min_length=1)
    batch_tokens: int = Field(BATCH_TOKENS, ge=1)
    least: float = Field(LEAST, gt=0)

    @model_validator(mode="after")
    def _controlled(self) -> SweepSettings:
        if "shuffled" not in self.controls:
            raise ValueError("controls must hold `shuffled`, which patches are compared with")
        return self

    def blocks(self, count: int) -> list[int]:
        """Block numbers to patch, of a model of this many blocks."""
        return (
            sorted(set(self.layers)) if self.layers else sorted({*range(self.every - 1, count, self.every), count - 1})
        )


class KnobeSettings(AnalysisSettings):
    """`analysis: knobe`. `model` is the base; the tuned model is named (`tuned`) or made (`tune`)."""

    tuned: str | None = None
    tune: TuneSettings | None = None
    vignettes: Path | None = None
    originals: Path | None = None
    pairs: int | None = Field(None, ge=2)
    trials: int = Field(283, ge=2)
    seed: int = Field(0, ge=0)
    engine: Literal["vllm", "torch"] = "vllm"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    max_length: int = Field(1024, ge=32)
    sweep: SweepSettings | None = SweepSettings.model_validate({})
    stitched: list[int] = Field([])

    @model_validator(mode="after")
    def _one_tuned(self) -> KnobeSettings:
        if (self.tuned is None) == (self.tune is None):
            raise ValueError("give either `tuned` (a model's name or folder) or `tune` (topic, side, recipe)")
        if self.vignettes and self.originals:
            raise ValueError("give `vignettes` (pairs) or `originals` (single vignettes in order), not both")
        return self
