"""An experiment file, read: the study that it asks for and that study's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analysis import read_settings, read_yaml

if TYPE_CHECKING:
    from harness.compare import Comparison
    from harness.plan import PlannedStep
    from harness.planner import Planner
    from harness.report.sheet import Sheet


@dataclass(frozen=True)
class ExperimentFile:
    """A study ready to be carried out. `prepare` and `plan` are those of `Analysis`, None where it has none."""

    settings: Any
    run: Callable[[Any, Path], Comparison | Sheet]
    prepare: Callable[[Any, Path], object] | None
    plan: Callable[[Any, Planner], list[PlannedStep]] | None

    def folder(self, out: Path | None) -> Path:
        """`out`, or the default: reports/NAME."""
        return out or Path("reports") / self.settings.name


def opened(file: Path) -> ExperimentFile:
    """The analysis that the file names, or the whole method of harness/experiment.py.

    Raises:
        InputError: what is wrong with the file, naming the key; an analysis that is not installed.
    """
    if named := (raw := read_yaml(file)).get("analysis"):
        from plugins import load

        analysis = load("analyses", str(named))
        return ExperimentFile(
            read_settings(raw, file, analysis.settings), analysis.run, analysis.prepare, analysis.plan
        )
    from harness.config import load_experiment
    from harness.experiment import prepare, run
    from harness.experiment_plan import plan

    return ExperimentFile(load_experiment(file), run, prepare, plan)
