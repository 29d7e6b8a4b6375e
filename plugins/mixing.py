"""Data mixing: train on balanced answers too, a left and a right one to every question of other topics.

Both answers to one question pull in opposite directions, so they teach the register and no side. `Combined` adds an anchor on
the same topics (plugins/anchor.py) and may hold general neurons as well (plugins/inhibitft.py).
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from harness.errors import InputError
from harness.finetune import topic_pairs
from harness.mitigation import Material, Mitigation, Training
from plugins.anchor import AnchorTopics
from plugins.inhibitft import InhibitFT


class Mix(Mitigation):
    """Add `questions` training questions of the seen topics, shared evenly, with both sides' answers.

    `topics`: others in place of the seen ones; `[neutral]` is the control that adds as much without politics.
    """

    questions: int = Field(24, ge=1)
    topics: list[str] = Field(default=[])

    def apply(self, plain: Training, material: Material) -> Training:
        names = self.topics or material.seen
        if not names:
            raise InputError("Mixing needs topics to take questions from; give at least one in `seen`.")
        each = -(-self.questions // len(names))
        chosen = [item for name in names for item in material.topic(name).split("train")[:each]]
        chosen = chosen[: self.questions]
        added = [pair for side in ("left", "right") for pair in topic_pairs(chosen, side)]
        return replace(plain, pairs=[*plain.pairs, *added])


class Combined(AnchorTopics):
    """Mixing, an anchor on the same topics, and the best `share` of the general neurons held (0: none)."""

    questions: int = Field(24, ge=1)
    share: float = Field(0.0, ge=0, le=1)

    def apply(self, plain: Training, material: Material) -> Training:
        mixed = super().apply(Mix(questions=self.questions).apply(plain, material), material)
        return InhibitFT(share=self.share).apply(mixed, material) if self.share else mixed
