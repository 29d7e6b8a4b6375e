"""The control of every localiser and mitigation: as many random neurons in every layer, outside the method's own set.

stance tune --model M --data F.jsonl --hold general.safetensors --share 0.05 --control 0 --out DIR
"""

from __future__ import annotations

from harness.neurons import Neurons


def held(general: Neurons, share: float, seed: int) -> Neurons:
    """Random neurons matched per layer to what InhibitFT would hold at this share."""
    chosen = general.top(share)
    return chosen.random_like(seed, exclude=chosen)
