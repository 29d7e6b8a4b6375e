"""NeuronLens' saliency (arXiv 2502.06809) over the whole network: every neuron of every layer of a site, in one pass.

Over the activations a at the last token of every sequence:

    mean: mean |a|, over the sequences of both sides (the paper's)
    distance: d' = |mu_left - mu_right| / sqrt((sigma_left^2 + sigma_right^2) / 2), population sigma (ours)

The paper scores one layer. Over several, `mean` also says how large a layer's activations are: they grow with depth, so
that a ranking over all layers by it prefers late ones. `distance` has no unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from harness.activations import batches, forward, pad, visiting
from harness.errors import InputError, choices
from harness.sites import check_site, mlps, width
from plugins.neuronlens import d_prime
from plugins.neuronlens_moments import Moments, Place, at_last_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kind = Literal["mean", "distance"]


def saliency(
    model: PreTrainedModel,
    left: list[list[int]],
    right: list[list[int]],
    site: str = "mlp_act",
    kind: Kind = "mean",
    batch_tokens: int = 2048,
) -> Float[Tensor, "l n"]:
    """Score of every neuron from token sequences of two sides, such as left and right answers; float64 on the CPU.

    `mean` is in activation units; `distance` in standard deviations, infinite where neither side varies and the means differ.

    Raises:
        InputError: unknown kind or site, fewer than two sequences on a side, one without tokens, or activations that are
            not finite.
    """
    if kind not in get_args(Kind):
        raise InputError(f"kind is {kind!r}; expected one of {choices(get_args(Kind))}.")
    if min(len(left), len(right)) < 2 or not all(left) or not all(right):
        raise InputError(
            f"Came {len(left)} left and {len(right)} right sequences; expected two or more of each, with a token at least."
        )
    known, layers = check_site(site), len(mlps(model))
    # All layers side by side are one place, so that one layer's sums serve.
    place = Place(known, 0, 1, layers * width(model, known), "")
    sequences, found = [*left, *right], dict[bool, Moments]()
    for batch in batches(sequences, batch_tokens):
        last = _last(model, [sequences[n] for n in batch], place)
        on_left = torch.tensor([n < len(left) for n in batch])
        for side in (True, False):
            if bool((on_left == side).any()):
                part = Moments.of(last[on_left == side], place)
                found[side] = found[side] + part if side in found else part
    one, other = found[True], found[False]
    scores = (one + other).size if kind == "mean" else d_prime(one, other)
    return scores.view(layers, -1)


def _last(model: PreTrainedModel, sequences: list[list[int]], place: Place) -> Float[Tensor, "b n"]:
    """Activations at the last token, the layers side by side."""
    ids, real = pad(sequences, 0, next(model.parameters()).device)
    kept: dict[int, Tensor] = {}

    def keep(layer: int, activation: Tensor) -> None:
        kept[layer] = at_last_token(activation.detach(), real).cpu()

    with visiting(model, place.site, keep):
        forward(model, ids)
    return torch.cat([kept[layer] for layer in sorted(kept)], -1)
