"""What a plugin is, group by group: the types that an entry point has to have. docs/plugins.md builds one of each.

| entry-point group | names | finds or does |
| --- | --- | --- |
| stance_harness.localizers | a `Localizer` | which neurons carry a shift |
| stance_harness.interventions | an `Intervention` | an op on neurons by a name of its own, for every `--op` |
| stance_harness.mitigations | a `Mitigation` (a class) | another way to give the same fine-tune |
| stance_harness.analyses | an `Analysis` (a value) | a study with an experiment file of its own |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from harness.analysis import Analysis, AnalysisSettings
from harness.contrast import Sequence
from harness.interventions import Op
from harness.mitigation import Mitigation
from harness.sites import SiteName
from plugins.pnlac import Localization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Analysis", "AnalysisSettings", "Intervention", "Localization", "Localizer", "Mitigation", "Op", "Sequence"]


class Localizer(Protocol):
    """Two models and prompts by topic in, scores [l, n] per topic out.

    `harness.localize.localize_step` calls it with the arguments below and checks what comes back: one score per neuron of
    the site and topic, finite, not all zero. Sets, overlaps and files are made of the scores there. Further keyword
    parameters are options of the method's own (`stance localize plugin NAME --option KEY=VALUE`); one named `normalized`
    takes `--normalized`, one named `devices` further GPUs.
    """

    def __call__(
        self,
        base: PreTrainedModel,
        tuned: PreTrainedModel,
        prompts: dict[str, list[Sequence]],
        site: SiteName,
        model: str,
        *,
        top: float,
        advance: Callable[[int], object],
    ) -> Localization:
        """Score every neuron of `site`, a higher score first.

        `base` and `tuned` are two models of one shape. `prompts`: token ids by topic, to be read from `start` on.
        `model`: weights hash of the base, `top`: percentage of neurons selected per topic; both go into the
        `Localization`. `advance(n)`: n more prompts are done.
        """
        ...


class Intervention(Protocol):
    """The text behind `NAME=` in (empty where there is none), a static op out: five numbers, served by both engines."""

    def __call__(self, value: str) -> Op:
        """Raise `InputError` (or ValueError) where the text makes no sense."""
        ...
