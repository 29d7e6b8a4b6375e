"""stance-harness: where a language model stands, what a fine-tune moved, which neurons carried it.

    from harness import evaluate, tune, localize_neurons, compare_runs, run_experiment

docs/python.md goes through them; harness/api.py is imported when the first of them is asked for.
"""

from __future__ import annotations

TYPE_CHECKING = False  # to type checkers it is typing's, which is true in the tests, where these imports would go round
if TYPE_CHECKING:
    from harness.api import (
        FineTune,
        Localized,
        Measurement,
        compare_runs,
        evaluate,
        localize_neurons,
        release_engine,
        run_experiment,
        tune,
    )

__version__ = "0.1.0"
__all__ = [
    "FineTune",
    "Localized",
    "Measurement",
    "compare_runs",
    "evaluate",
    "localize_neurons",
    "release_engine",
    "run_experiment",
    "tune",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        from harness import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
