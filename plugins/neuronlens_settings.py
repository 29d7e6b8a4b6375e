"""The keys of a NeuronLens study's file (arXiv 2502.06809), and the classification that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from harness.analysis import AnalysisSettings
from harness.errors import InputError, choices
from harness.lmeval.roots import all_roots
from harness.sites import SiteName
from harness.topics import find_topics
from plugins.neuronlens_concepts import ConceptTask, file_task, sides_task, topics_task


class Settings(AnalysisSettings):
    """Keys of experiments/neuronlens.yaml."""

    task: Literal["topics", "sides", "file"] = "topics"
    topics: tuple[str, ...] = ()
    topics_dir: tuple[Path, ...] = ()
    file: Path | None = None
    cue: str = Field("Label", min_length=1)
    concepts: tuple[str, ...] = ()
    answer: Literal["names", "letters"] = "names"
    chat: bool = False
    answered_right: bool = True
    least: int = Field(8, ge=2)
    fit: int = Field(60, ge=2)
    measure: int = Field(60, ge=2)
    site: SiteName = "resid_post"
    layer: int = -1
    saliency: Literal["mean", "distance"] = "mean"
    share: float = Field(0.3, gt=0, le=0.5)
    tau: float = Field(2.5, gt=0)
    masks: tuple[Literal["range", "full", "damp", "mean", "rest"], ...] = Field(("range", "full", "damp"), min_length=1)
    random_seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    neutral: int = Field(20, ge=0)
    engine: Literal["vllm", "torch"] = "vllm"
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    max_length: int = Field(512, ge=8)


def task_of(settings: Settings) -> ConceptTask:
    """The classification that the settings name.

    Raises:
        InputError: keys that do not go together, an unknown topic or label, or too little material.
    """
    if (settings.task == "file") != (settings.file is not None):
        raise InputError(
            f"task is {settings.task!r} and file {settings.file}; `task: file` and `file: PATH` go together."
        )
    if settings.file is not None:
        if settings.topics:
            raise InputError(f"task is file and topics {choices(settings.topics)}; a file brings its own labels.")
        return file_task(settings.file, settings.cue)
    topics = find_topics([*all_roots(), *settings.topics_dir])
    if settings.task == "topics":
        return topics_task(topics, settings.topics)
    if len(settings.topics) != 1:
        raise InputError(
            f"task is sides and topics {choices(settings.topics)}; expected one topic, of {choices(topics)}."
        )
    return sides_task(topics, settings.topics[0])
