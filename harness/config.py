"""The experiment file: YAML -> typed settings. Unknown keys are errors that list the known ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.analysis import read_yaml
from harness.characters import FileName
from harness.engines import Settings
from harness.errors import InputError
from harness.measure import Asked
from harness.models import DEFAULT
from harness.recipe import Recipe
from harness.sites import SiteName
from harness.topics import GROUP, explain


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MeasureSettings(Strict):
    """What is asked, and how. Every run of the experiment is asked the same."""

    tasks: list[str] = [GROUP]
    limit: int | dict[str, int] | None = None
    engine: Literal["vllm", "torch"] = "vllm"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    adapters: Literal["merge", "request"] = "merge"
    chat_template: Literal["auto", "on", "off"] = "auto"
    judge: str = "embedded"
    axes: dict[str, Any] = {}
    max_length: int = Field(1024, ge=32)
    tensor_parallel: int = Field(1, ge=1)
    topics_dir: list[Path] = []

    @property
    def asked(self) -> Asked:
        """The questions."""
        return Asked(tuple(self.tasks), self.limit, judge=self.judge, folders=tuple(self.topics_dir), axes=self.axes)

    @property
    def served(self) -> Settings:
        """What the engine is started with."""
        return Settings(
            dtype=self.dtype,
            max_length=self.max_length,
            adapters=self.adapters,
            tensor_parallel=self.tensor_parallel,
        )


class TrainSettings(Strict):
    """Which topics are tuned on, one at a time, to which side, and in how many processes (a GPU each).

    `sharded`: the processes share the weights out too (FSDP).
    """

    topics: list[str] = Field(min_length=1)
    side: Literal["left", "right"] = "right"
    recipe: Recipe = Recipe.model_validate({})
    seed: int = 0
    processes: int = Field(1, ge=1)
    sharded: bool = False


class LocalizeSettings(Strict):
    """PNLAC. `prompts`: training questions per topic (None: all); they are never the measured ones."""

    site: SiteName = "mlp_act"
    tokens: Literal["prompt", "completion"] = "prompt"
    top: float = Field(30.0, gt=0, le=100)
    normalized: bool = False
    prompts: int | None = Field(None, ge=2)
    precision: Literal["float32", "bfloat16"] = "float32"


class PatchSettings(Strict):
    """Activation patching on the Torch engine: the base receives the tuned model's activations."""

    tasks: list[str] = [f"{GROUP}_*_pairs", f"{GROUP}_*_open"]
    limit: int | dict[str, int] | None = None
    random_seeds: list[int] = [0]


class InhibitSettings(Strict):
    """InhibitFT at each share of the general neurons, each beside random neurons under these seeds."""

    shares: list[float] = [0.05]
    random_seeds: list[int] = Field([0, 1, 2], min_length=1)


class Experiment(Strict):
    """One study. Sections left out are not run, except measuring and training."""

    name: FileName
    model: str = DEFAULT
    train: TrainSettings
    measure: MeasureSettings = MeasureSettings.model_validate({})
    localize: LocalizeSettings = LocalizeSettings.model_validate({})
    patch: PatchSettings | None = None
    inhibit: InhibitSettings | None = None


def load_experiment(path: Path) -> Experiment:
    """Read and check an experiment file.

    Raises:
        InputError: what is wrong, naming the file and the key.
    """
    raw = read_yaml(path)
    try:
        return Experiment.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error, Experiment)}") from None
