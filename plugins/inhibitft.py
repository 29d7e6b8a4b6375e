"""InhibitFT (arXiv 2508.02360): fine-tune again from the base with the best general neurons held.

held = the top `share` of the general set G by mean R_t over topics (0.05 is the paper's setting; more is not better).
What holding means for the weights is in harness/hold.py. An empty G is an error, since it would be an ordinary
fine-tune. A reduction counts only net of plugins/random_control.py.

`HoldNormalized` and `HoldGradient` are ours: the same with G by PNLAC's normalised score, and with the neurons of the
largest gradient x activation on the trained topic (CULNIG's score, arXiv 2510.08284, at `gate`).

    stance tune --model M --data F.jsonl --hold general.safetensors --share 0.05 --out DIR
"""

from __future__ import annotations

from pydantic import Field

from harness.mitigation import Material, Mitigation, Training, holding


class InhibitFT(Mitigation):
    """Hold the best `share` of the general neurons."""

    share: float = Field(0.05, gt=0, le=1)

    def apply(self, plain: Training, material: Material) -> Training:
        return holding(plain, material.found("general").top(self.share))


class HoldNormalized(Mitigation):
    """Hold the best `share` of the general neurons by the score in units of each neuron's standard deviation."""

    share: float = Field(0.05, gt=0, le=1)

    def apply(self, plain: Training, material: Material) -> Training:
        return holding(plain, material.found("normalized").top(self.share))


class HoldGradient(Mitigation):
    """Hold as many neurons as InhibitFT at `share`, those of the largest gradient score."""

    share: float = Field(0.05, gt=0, le=1)

    def apply(self, plain: Training, material: Material) -> Training:
        ranked, count = material.found("gradient"), len(material.found("general").top(self.share))
        return holding(plain, ranked.top(min(1.0, count / len(ranked))))
