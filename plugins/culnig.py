"""CULNIG: neurons by gradient times activation (arXiv 2510.08284, ICLR 2026).

s_k(x) = max over the real positions of item x of a[k] * dP/da[k], P = probability of the gold token at the last position
S_k(D) = mean over the items of D of P * s_k, on control items max(0, P * s_k)
general = the top 1% of gate neurons and the top 0.2% of pooled q, k, v neurons by S(culture) - S(control), without the
top 1% of the same pools by S(copying the label); specific to c = the top 0.3% of all neurons pooled by c's difference,
without the top 1% by c's S(copying), where c's difference lies at least 0.5 standard deviations above the mean over
countries. Any two labelled sets may take the place of culture and control, such as political questions and the same
options without the question.

Items of a batch do not touch each other, so one backward pass of the batch's summed log P holds every item's gradient;
dP = P dlog P is put right afterwards, which keeps tiny probabilities within the range of low precision. Gradients are
reduced as they arrive, so memory depends on the size of a batch and never on how many items there are.

Does nothing useful where the gold tokens' probability is 0: all scores are zero, which is refused. Prompts of one token
score q and k 0, since attention to a single position is always 1. `compatible` does nothing where lengths are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from harness.activations import batches, pad
from harness.errors import InputError, ProofError, choices
from harness.projections import PROJECTION_SITES, ProjectionSite, projection_parts
from plugins.culnig_hooks import PerSite, Sums, hooked, wide

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Masks = dict[ProjectionSite, Bool[Tensor, "l _"]]

PUBLIC_BATCH = 16  # items per batch, in the order given, in the authors' code


@dataclass(frozen=True)
class Item:
    """Token ids of a prompt and the token that is the gold answer right after it."""

    ids: list[int]
    gold: int


@dataclass(frozen=True)
class Scores:
    """S_k(D) per site [l, n], float64 on the CPU, and the mean probability of the gold token."""

    sites: PerSite
    items: int
    probability: float


def score(
    model: PreTrainedModel,
    items: list[Item],
    sites: Sequence[ProjectionSite] = PROJECTION_SITES,
    clip_control: bool = False,
    compatible: bool = False,
    dtype: torch.dtype | None = None,
    batch_tokens: int = 512,
    advance: Callable[[int], object] = lambda _: None,
) -> Scores:
    """S_k of a data set. `clip_control`: weighted item scores below 0 count as 0, as for control items.

    `compatible`: the authors' padding: items shorter than the longest of their batch (16 in the order given) have pads,
    whose 0 takes part in the max. `dtype`: autocast, such as torch.bfloat16. `advance(n)` is told of n finished items.

    Raises:
        InputError: no items, an empty prompt, a gold token outside the vocabulary, or a model without these sites.
        ProofError: a projection was not used in the forward pass, or the scores are all zero or not finite.
    """
    return _score(model, items, sites, clip_control, (compatible,), dtype, batch_tokens, advance)[0]


def score_both(
    model: PreTrainedModel,
    items: list[Item],
    sites: Sequence[ProjectionSite] = PROJECTION_SITES,
    clip_control: bool = False,
    dtype: torch.dtype | None = None,
    batch_tokens: int = 512,
    advance: Callable[[int], object] = lambda _: None,
) -> tuple[Scores, Scores]:
    """`score` without and with `compatible`, from one pass over the items."""
    plain, compatible = _score(model, items, sites, clip_control, (False, True), dtype, batch_tokens, advance)
    return plain, compatible


def _score(
    model: PreTrainedModel,
    items: list[Item],
    sites: Sequence[ProjectionSite],
    clip_control: bool,
    modes: tuple[bool, ...],
    dtype: torch.dtype | None,
    batch_tokens: int,
    advance: Callable[[int], object],
) -> list[Scores]:
    """One `Scores` per mode, which says whether pads take part in the max."""
    layers, head = projection_parts(model, sites), model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise InputError(f"{type(model).__name__} has no vocabulary head, so no token has a probability.")
    _check(items, int(head.weight.shape[0]))  # type: ignore[arg-type]
    device, padded, probability = next(model.parameters()).device, _padded(items), 0.0
    sums: list[PerSite] = [
        {s: torch.zeros(len(layers), p.width, device=device).double() for s, p in layers[0].items()} for _ in modes
    ]
    expected = sum(map(len, layers))
    with hooked(model, layers, head, state := Sums(sums, clip_control)):
        for batch in batches([item.ids for item in items], batch_tokens):
            ids, real = pad([items[n].ids for n in batch], 0, device)
            rows, state.last = torch.arange(len(batch), device=device), real.sum(1) - 1
            state.pads = None if bool(real.all()) else ~real[..., None]
            state.floored = [torch.tensor([[mode and padded[n]] for n in batch], device=device) for mode in modes]
            state.leaves, state.reduced = [], 0
            # No attention mask: pads stand to the right, where causal attention sees them from no real position.
            with torch.enable_grad(), torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits = wide(model(input_ids=ids, use_cache=False).logits[:, 0])
                log_p = logits.log_softmax(-1)[rows, torch.tensor([items[n].gold for n in batch], device=device)]
            p = log_p.detach().double().exp()
            state.weight = (p * p)[:, None]  # P of the weighted mean times P of dP = P dlog P
            torch.autograd.grad(log_p.sum(), state.leaves)
            if state.reduced != expected:
                raise ProofError(f"{state.reduced} of {expected} projections had a gradient; the model skips some.")
            probability += float(p.sum())
            advance(len(batch))
    mean, scores = probability / len(items), []
    for kept in sums:
        found: PerSite = {site: (total / len(items)).cpu() for site, total in kept.items()}
        if not all(bool(s.isfinite().all()) for s in found.values()) or not any(bool(s.any()) for s in found.values()):
            raise ProofError(
                f"All scores are zero, or some not finite; the gold tokens' mean probability is {mean:.3g}."
            )
        scores.append(Scores(found, len(items), mean))
    return scores


def _check(items: list[Item], vocabulary: int) -> None:
    if not items or not all(item.ids for item in items):
        raise InputError("No items to score, or an empty prompt among them; every item needs at least one token.")
    if wrong := {item.gold for item in items if not 0 <= item.gold < vocabulary}:
        raise InputError(f"Gold token {choices(wrong)} is outside the vocabulary of {vocabulary}.")


def _padded(items: list[Item]) -> list[bool]:
    lengths = [len(item.ids) for item in items]
    longest = [max(lengths[n : n + PUBLIC_BATCH]) for n in range(0, len(items), PUBLIC_BATCH)]
    return [length < longest[n // PUBLIC_BATCH] for n, length in enumerate(lengths)]


def difference(scores: PerSite, control: PerSite) -> PerSite:
    """S(scores) - S(control), site by site.

    Raises:
        InputError: different sites or shapes.
    """
    if {site: s.shape for site, s in scores.items()} != {site: s.shape for site, s in control.items()}:
        raise InputError("The two sets of scores are of different sites or models; score both on the same.")
    return {site: s - control[site] for site, s in scores.items()}


def top(scores: PerSite, share: float) -> Masks:
    """The best `share` of the neurons of these sites, ranked together; rounded down, but at least one.

    Raises:
        InputError: share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise InputError(f"share is {share}; expected above 0 and at most 1 (0.01 is 1% of the neurons).")
    if not scores:
        return {}
    ranked = torch.cat([s.flatten() for s in scores.values()])
    chosen = torch.zeros(len(ranked), dtype=torch.bool, device=ranked.device)
    chosen[ranked.sort(descending=True, stable=True).indices[: max(1, int(share * len(ranked)))]] = True
    pieces = chosen.split([s.numel() for s in scores.values()])
    return {site: piece.view_as(s) for (site, s), piece in zip(scores.items(), pieces, strict=True)}


def remove(masks: Masks, other: Masks) -> Masks:
    """Members of `masks` that are not in `other`."""
    return {site: mask & ~other[site] if site in other else mask for site, mask in masks.items()}


def stands_out(country: str, countries: dict[str, PerSite], least: float = 0.5) -> Masks:
    """Neurons whose score for `country` has z >= `least` over all countries (population deviation; 0 where none vary).

    Raises:
        InputError: fewer than two countries, or an unknown one.
    """
    if country not in countries or len(countries) < 2:
        raise InputError(f"Cannot tell {country!r} from others among {choices(countries)}; two or more are needed.")
    masks: Masks = {}
    for site, own in countries[country].items():
        deviation, mean = torch.std_mean(torch.stack([scores[site] for scores in countries.values()]), 0, correction=0)
        masks[site] = torch.where(deviation > 0, (own - mean) / deviation, 0.0) >= least
    return masks


def general(culture: PerSite, control: PerSite, copying: PerSite | None = None) -> Masks:
    """Neurons of culture at large: 1% of gate and 0.2% of q, k, v, without the top 1% of each pool by `copying`."""
    scores, copied = difference(culture, control), copying or {}
    gate = remove(top(_pool(scores, True), 0.01), top(_pool(copied, True), 0.01))
    return gate | remove(top(_pool(scores, False), 0.002), top(_pool(copied, False), 0.01))


def _pool(scores: PerSite, gate: bool) -> PerSite:
    return {site: s for site, s in scores.items() if (site == "gate") is gate}


def specific(country: str, differences: dict[str, PerSite], copying: PerSite | None = None) -> Masks:
    """Neurons of one country: 0.3% of all sites pooled, without the top 1% by `copying`, where the country stands out."""
    out = stands_out(country, differences)
    chosen: Masks = {site: mask & out[site] for site, mask in top(differences[country], 0.003).items()}
    return remove(chosen, top(copying or {}, 0.01))
