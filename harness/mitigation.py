"""What a mitigation is: another way to give the same fine-tune. `Training` in, `Training` out.

A mitigation is a pydantic model, so its options are typed and an unknown one is an error; calling it returns the fine-tune
that is to be carried out instead of the plain one. It draws on `Material`: the topics, and neurons found in the plain
fine-tune. Entry-point group `stance_harness.mitigations`; every one of them is carried out by `harness.steps.tune_step` and
proven there. A mitigation that asks for a fine-tune equal to the plain one is refused.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.anchor import Anchored
from harness.errors import InputError, ProofError, choices
from harness.margin import HeldMargins
from harness.neurons import Neurons
from harness.recipe import Recipe
from harness.topics import Topic, explain

NeuronKind = Literal["general", "specific", "normalized", "gradient"]


@dataclass(frozen=True)
class Training:
    """One fine-tune before it is carried out.

    Attributes:
        pairs: prompt and completion.
        recipe: how to train.
        hold: neurons whose weights stay those of the base.
        anchored: prompts on which the model stays near the base, or pairs of answers whose margins do.
    """

    pairs: list[dict[str, str]]
    recipe: Recipe
    hold: Neurons | None = None
    anchored: Anchored | HeldMargins | None = None

    def described(self) -> dict[str, Any]:
        """What tells two fine-tunes apart, without their texts."""
        held = None if self.hold is None else (self.hold.site, self.hold.mask.nonzero().tolist())
        anchor = None if self.anchored is None else (self.anchored.settings.model_dump(), texts(self.anchored))
        return {"pairs": self.pairs, "recipe": self.recipe.model_dump(), "hold": held, "anchor": anchor}


def texts(anchored: Anchored | HeldMargins) -> Any:
    """Everything an anchor reads."""
    return anchored.pairs if isinstance(anchored, HeldMargins) else anchored.prompts


@dataclass(frozen=True)
class Material:
    """What a mitigation may draw on.

    Attributes:
        seed: of the fine-tune; a random control draws by it.
        topics: all topics by name, control topics among them.
        seen: topics whose training questions a mitigation may use; figures of unseen topics leave these out.
        neurons: kind -> neurons found in the plain fine-tune, best first by their scores; made when first asked for.
    """

    seed: int = 0
    topics: Mapping[str, Topic] | None = None
    seen: tuple[str, ...] = ()
    neurons: Callable[[NeuronKind], Neurons] | None = None

    def found(self, kind: NeuronKind) -> Neurons:
        """Neurons of a kind.

        Raises:
            InputError: nothing was localised.
        """
        if self.neurons is None:
            raise InputError(f"This mitigation holds {kind} neurons and none were localised; give the set to hold.")
        return self.neurons(kind)

    def topic(self, name: str) -> Topic:
        """A topic by name.

        Raises:
            InputError: there is none of that name.
        """
        known = self.topics or {}
        if name not in known:
            raise InputError(f"There is no topic {name!r} to draw on; topics: {choices(known)}.")
        return known[name]


class Mitigation(BaseModel, abc.ABC):
    """Subclass with the options as fields and `apply`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abc.abstractmethod
    def apply(self, plain: Training, material: Material) -> Training:
        """The fine-tune to carry out instead of the plain one."""

    def __call__(self, plain: Training, material: Material) -> Training:
        """`apply`, with the proof that it changed something.

        Raises:
            ProofError: the fine-tune is the plain one.
        """
        made = self.apply(plain, material)
        if made.described() == plain.described():
            raise ProofError(f"{type(self).__name__} leaves the plain fine-tune as it is; it would show nothing.")
        return made


def configured(kind: type[Mitigation], options: Mapping[str, Any], name: str) -> Mitigation:
    """A mitigation with its options.

    Raises:
        InputError: an unknown option, or a value out of range.
    """
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        raise InputError(f"Mitigation {name}: {explain(error, kind)}") from None


def holding(plain: Training, neurons: Neurons) -> Training:
    """The same fine-tune with neurons held (too)."""
    return replace(plain, hold=neurons if plain.hold is None else plain.hold | neurons)
