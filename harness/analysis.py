"""An analysis: a study with an experiment file of its own, `analysis: NAME` and the settings that the analysis declares.

`harness/experiment.py` is the one study that needs no name. Every other is a plugin of the entry-point group
`stance_harness.analyses`: an `Analysis` whose `run` makes run folders in the folder it is given (harness/runs.py: what is
there already is not made again) and returns the page that says what was found.

    stance run experiments/knobe.yaml
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.characters import FileName
from harness.documents import read_mapping
from harness.errors import InputError
from harness.models import DEFAULT
from harness.report.sheet import Sheet
from harness.topics import explain

if TYPE_CHECKING:
    from harness.plan import PlannedStep
    from harness.planner import Planner


class AnalysisSettings(BaseModel):
    """What every analysis has; subclass it with the analysis' own keys. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: FileName
    model: str = DEFAULT


@dataclass(frozen=True)
class Analysis:
    """What an entry point of `stance_harness.analyses` names: the keys of its file, and the work.

    `prepare` checks what can be known before a model is loaded and `plan` lists the steps; with both, `--dry-run` works.
    """

    settings: type[AnalysisSettings]
    run: Callable[[Any, Path], Sheet]
    prepare: Callable[[Any, Path], object] | None = None
    plan: Callable[[Any, Planner], list[PlannedStep]] | None = None


def read_yaml(path: Path) -> dict[str, Any]:
    """An experiment file's keys.

    Raises:
        InputError: no such file, or not a YAML mapping.
    """
    if not path.is_file():
        raise InputError(f"There is no experiment file {path}; experiments/demo.yaml is a commented example.")
    raw = read_mapping(path, "experiment file")
    if not raw:
        raise InputError(f"{path} must hold keys and values; experiments/demo.yaml is a commented example.")
    return raw


def read_settings(raw: dict[str, Any], path: Path, settings: type[AnalysisSettings]) -> AnalysisSettings:
    """The keys of an analysis' file, `analysis` left out.

    Raises:
        InputError: what is wrong, naming the file and the key.
    """
    try:
        return settings.model_validate({key: value for key, value in raw.items() if key != "analysis"})
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error, settings)}") from None
