"""What steps of a study do: functions of their folder and of the folders of the steps before them.

They hold what they need by value and no study, so that a step can be sent to another machine (see executor.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import engines, steps
from harness.measure import Asked
from harness.mitigation import Training
from harness.runs import Run
from harness.training_data import measured_questions
from harness.variants import Variant, tuned_variant

Work = Callable[..., Run]


def measuring(
    model: str,
    asked: Asked,
    chat: str,
    engine: str,
    settings: engines.Settings,
    about: dict[str, Any],
) -> Work:
    """A measurement of `model`, or of the fine-tune of it that the step before has made. See `steps.measure_step`."""

    def work(out: Path, *made: Path) -> Run:
        variant = tuned_variant(model, *made) if made else Variant(model)
        return steps.measure_step(out, variant, asked, chat, engine, settings, about)

    return work


def tuning(
    model: str,
    trained: Callable[..., Training],
    seed: int,
    topics: list[Path],
    about: dict[str, Any],
    processes: int = 1,
    sharded: bool = False,
) -> Work:
    """A fine-tune of `model`. See `steps.tune_step`.

    Args:
        trained: what is trained on and held, given the folders of the steps before.
        topics: folders of further topics, whose measured questions must not be trained on either.
        processes, sharded: how many share the work, and whether the weights too; an anchored fine-tune is not shared.
    """

    def work(out: Path, *made: Path) -> Run:
        training = trained(*made)
        return steps.tune_step(
            out,
            model,
            training.pairs,
            training.recipe,
            seed,
            training.hold,
            measured_questions(topics),
            about=about,
            anchored=training.anchored,
            processes=1 if training.anchored else processes,
            sharded=sharded and not training.anchored,
        )

    return work
