"""Anchors: stay near the base on prompts that are not trained on (harness/anchor.py has the loss).

    loss = completion loss + weight * KL(base || model) over the base's own answers to unlabelled prompts

`AnchorTopics` asks the training questions of the seen topics, which are other topics than those whose spill-over is
reported as unseen; `AnchorNeutral` asks questions without politics; `AnchorRandom` is the control of both: as many prompts
of random words, the same weight, the same number of steps.

`HoldMargins` (harness/margin.py) holds the base's preference between the two sides' answers to questions of the seen topics;
with `topics: [neutral]` between two answers without politics, which is its control.
"""

from __future__ import annotations

import random
from dataclasses import replace

from pydantic import Field

from harness.anchor import Anchored, AnchorSettings
from harness.errors import InputError
from harness.margin import HeldMargins, MarginSettings
from harness.mitigation import Material, Mitigation, Training


class Anchor(Mitigation):
    """Options of every anchor. `prompts`: how many questions, shared evenly over the topics that are asked."""

    weight: float = Field(1.0, gt=0)
    batch_size: int = Field(4, ge=1)
    answers: int = Field(48, ge=0)
    prompts: int = Field(48, ge=1)

    def _topics(self, material: Material) -> tuple[str, ...]:
        return material.seen

    def _prompts(self, material: Material) -> list[str]:
        names = self._topics(material)
        if not names:
            raise InputError("An anchor needs topics to ask; give at least one in `seen`.")
        questions = [[item.question for item in material.topic(name).split("train")] for name in names]
        each = -(-self.prompts // len(names))
        return [question for some in questions for question in some[:each]][: self.prompts]

    def apply(self, plain: Training, material: Material) -> Training:
        settings = AnchorSettings(weight=self.weight, batch_size=self.batch_size, answers=self.answers)
        return replace(plain, anchored=Anchored(self._prompts(material), settings))


class AnchorTopics(Anchor):
    """On the training questions of the seen topics."""


class AnchorNeutral(Anchor):
    """On the training questions of a topic without politics."""

    topic: str = "neutral"

    def _topics(self, material: Material) -> tuple[str, ...]:
        return (self.topic,)


class AnchorRandom(Anchor):
    """On prompts of the same words in random order and mixture: the control."""

    def _prompts(self, material: Material) -> list[str]:
        asked = super()._prompts(material)
        draw = random.Random(material.seed)
        words = [word for prompt in asked for word in prompt.split()]
        draw.shuffle(words)
        ends = [len(prompt.split()) for prompt in asked]
        return [" ".join(words.pop() for _ in range(length)) for length in ends]


class HoldMargins(Mitigation):
    """On `pairs` training questions of the seen topics (or of `topics`), shared evenly.

    Holding slows learning: `longer` multiplies the epochs and `faster` the learning rate, to reach the plain fine-tune's.
    """

    weight: float = Field(30.0, gt=0)
    batch_size: int = Field(2, ge=1)
    pairs: int = Field(24, ge=1)
    topics: list[str] = Field(default=[])
    longer: float = Field(1.0, gt=0)
    faster: float = Field(1.0, gt=0)

    def apply(self, plain: Training, material: Material) -> Training:
        names = self.topics or material.seen
        if not names:
            raise InputError("Margins are held on topics; give at least one in `seen`.")
        each = -(-self.pairs // len(names))
        items = [item for name in names for item in material.topic(name).split("train")[:each]][: self.pairs]
        settings = MarginSettings(weight=self.weight, batch_size=self.batch_size)
        dose = {"epochs": plain.recipe.epochs * self.longer, "learning_rate": plain.recipe.learning_rate * self.faster}
        held = HeldMargins([(i.question, i.left, i.right) for i in items], settings)
        return replace(plain, recipe=plain.recipe.model_copy(update=dose), anchored=held)
