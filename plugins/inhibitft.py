"""InhibitFT (arXiv 2508.02360): fine-tune again from the base with the best general neurons held.

held = the top `share` of the general set G by mean R_t over topics (0.05 is the paper's setting; more is not better).
What holding means for the weights is in harness/hold.py. `share` 0 or an empty G is an error, since it would be an
ordinary fine-tune. A reduction counts only net of plugins/random_control.py.

    stance tune --model M --data F.jsonl --hold general.safetensors --share 0.05 --out DIR
"""

from __future__ import annotations

from harness.neurons import Neurons


def held(general: Neurons, share: float, seed: int) -> Neurons:
    """The neurons to hold. `seed` plays no part: the ranking decides."""
    return general.top(share)
