"""The controls. For held neurons: as many random neurons in every layer, outside the method's own set. For anchors: an
anchor of equal weight on prompts of random words, which hold the model still where nothing is asked (plugins/anchor.py).

stance tune --model M --data F.jsonl --hold general.safetensors --share 0.05 --control 0 --out DIR
"""

from __future__ import annotations

from pydantic import Field

from harness.mitigation import Material, Mitigation, Training, holding


class RandomControl(Mitigation):
    """Hold random neurons matched per layer to what InhibitFT would hold at this share.

    `seed`: of the draw; None takes the fine-tune's.
    """

    share: float = Field(0.05, gt=0, le=1)
    seed: int | None = None

    def apply(self, plain: Training, material: Material) -> Training:
        chosen = material.found("general").top(self.share)
        seed = material.seed if self.seed is None else self.seed
        return holding(plain, chosen.random_like(seed, exclude=chosen))
