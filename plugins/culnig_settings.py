"""Keys of an experiment file with `analysis: culnig`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.analysis import AnalysisSettings
from harness.config import Strict
from harness.recipe import Recipe


class Localise(Strict):
    """How many questions and passages of every country find the neurons; none of them is measured."""

    items: int = Field(18, ge=1)
    copying: int = Field(4, ge=1)


class Train(Strict):
    """Module-selective training: the control task, the share of parameters, and the recipe (mode full)."""

    task: Literal["sentiment", "paraphrase", "grammar"] = "sentiment"
    share: float = Field(0.1, gt=0, lt=1)
    seed: int = 0
    recipe: Recipe = Recipe.model_validate({"mode": "full", "epochs": 1, "learning_rate": 3e-5})


class Settings(AnalysisSettings):
    """Keys of the file. `limit`: measured items per task; `specific`: countries whose own neurons are suppressed."""

    engine: Literal["vllm", "torch"] = "vllm"
    dtype: Literal["auto", "bfloat16", "float32"] = "float32"
    chat_template: Literal["auto", "on", "off"] = "auto"
    max_length: int = Field(512, ge=8)
    limit: int = Field(18, ge=2)
    localise: Localise = Localise.model_validate({})
    specific: tuple[str, ...] = ()
    enhance: float | None = Field(2.0, gt=1)
    random_seeds: tuple[int, ...] = (0, 1, 2)
    train: Train | None = None
    tasks_extra: tuple[str, ...] = ()
