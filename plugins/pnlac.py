"""PNLAC: Political Neuron Localization through Activation Contrasting (arXiv 2508.02360, ACL 2026).

R_t[l,i] = sqrt( 1/T_t * sum over the T_t selected tokens of topic t of (a_tuned[l,i] - a_base[l,i])^2 )
N_t = the top k% of all neurons by R_t, ranked over all layers; general G = intersection of N_t over topics, ranked by
the mean R_t; specific P_t = N_t minus G. Tokens of the prompt (the paper) or of the completion (SafetyNeuron,
arXiv 2406.14144). `normalized`: R_t divided by the base's standard deviation of that neuron over the same tokens, since
raw activation size grows with depth and otherwise decides the ranking. Does nothing useful on two equal models: all
scores are zero, which is refused.

A fine-tune that is an adapter needs one model in memory: loaded into it by transformers' `load_adapter`, given as both `base`
and `tuned`, and switched off for the base's pass.

    stance localize pnlac --base smollm2-135m-instruct --tuned runs/tuned --topics all --site mlp_act --out runs/loc
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from harness.activations import batches, forward, pad, visiting
from harness.errors import InputError, ProofError
from harness.neurons import Neurons
from harness.sites import SiteName, mlps, width

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sequence:
    """Token ids of one prompt (and completion); scores count the positions from `start` on."""

    ids: list[int]
    start: int = 0


@dataclass
class Contrast:
    """Running sums over tokens of one topic, all [l, n] float64 on the models' device."""

    squared_difference: Float[Tensor, "l n"]
    base_sum: Float[Tensor, "l n"]
    base_squared: Float[Tensor, "l n"]
    base_absolute: Float[Tensor, "l n"]
    tokens: int = 0

    @classmethod
    def empty(cls, layers: int, site_width: int, device: torch.device) -> Contrast:
        zeros = torch.zeros(4, layers, site_width, dtype=torch.float64, device=device)
        return cls(zeros[0], zeros[1], zeros[2], zeros[3])

    def __add__(self, other: Contrast) -> Contrast:
        """Sums over the tokens of both."""
        return Contrast(
            self.squared_difference + other.squared_difference,
            self.base_sum + other.base_sum,
            self.base_squared + other.base_squared,
            self.base_absolute + other.base_absolute,
            self.tokens + other.tokens,
        )

    @property
    def score(self) -> Float[Tensor, "l n"]:
        """R_t: root mean squared difference, in activation units."""
        return (self.squared_difference / self.tokens).sqrt()

    @property
    def normalized(self) -> Float[Tensor, "l n"]:
        """R_t in units of the base's standard deviation; 0 where the base never varies."""
        mean_square = self.base_squared / self.tokens
        variance = mean_square - (self.base_sum / self.tokens) ** 2
        varies = variance > 1e-12 * mean_square  # below this the difference of the two sums is rounding
        return torch.where(varies, self.score / variance.clamp(min=0).sqrt(), 0.0)

    @property
    def size(self) -> Float[Tensor, "l n"]:
        """Mean |activation| of the base."""
        return self.base_absolute / self.tokens


def contrast(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    sequences: list[Sequence],
    site: SiteName,
    batch_tokens: int = 2048,
    advance: Callable[[int], object] = lambda _: None,
) -> Contrast:
    """One streaming pass of both models over the same token ids. `advance(n)` is told of n finished sequences.

    One model given twice is its own base with its adapter switched off.

    Raises:
        InputError: no tokens selected, or models of different shapes.
    """
    shape = (len(mlps(base)), width(base, site))
    if shape != (len(mlps(tuned)), width(tuned, site)):
        raise InputError(
            "The two models have different layers or widths; PNLAC contrasts a model with its own fine-tune."
        )
    if not any(s.start < len(s.ids) for s in sequences):
        raise InputError("No tokens to contrast: with --tokens completion the prompts need completions.")
    device = next(base.parameters()).device
    sums = Contrast.empty(*shape, device)
    pad_id = int(
        base.config.eos_token_id[0] if isinstance(base.config.eos_token_id, list) else base.config.eos_token_id or 0
    )
    for batch in batches([s.ids for s in sequences], batch_tokens):
        ids, mask = pad([sequences[n].ids for n in batch], pad_id, device)
        starts = torch.tensor([sequences[n].start for n in batch], device=device)
        chosen = mask & (torch.arange(ids.shape[1], device=device) >= starts[:, None])
        seen: dict[int, Tensor] = {}

        def of_base(layer: int, activation: Tensor, chosen: Tensor = chosen, seen: dict[int, Tensor] = seen) -> None:
            seen[layer] = a = _wide(activation[chosen])
            sums.base_sum[layer] += a.sum(0)
            sums.base_squared[layer] += _squares(a)
            sums.base_absolute[layer] += torch.linalg.vector_norm(a, 1, dim=0)

        def of_tuned(layer: int, activation: Tensor, chosen: Tensor = chosen, seen: dict[int, Tensor] = seen) -> None:
            sums.squared_difference[layer] += _squares(_wide(activation[chosen]) - seen.pop(layer))

        with visiting(base, site, of_base), _adapter_off(base) if base is tuned else nullcontext():
            forward(base, ids, mask)
        with visiting(tuned, site, of_tuned):
            forward(tuned, ids, mask)
        sums.tokens += int(chosen.sum())
        advance(len(batch))
    return sums


@contextmanager
def _adapter_off(model: PreTrainedModel) -> Iterator[None]:
    if not getattr(model, "_hf_peft_config_loaded", False):
        raise InputError("Base and tuned are one model without an adapter; PNLAC contrasts a model with its fine-tune.")
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def _wide(a: Float[Tensor, "c n"]) -> Float[Tensor, "c n"]:
    """At least float32: batches are summed in it, and summed up in float64."""
    return a.to(torch.promote_types(a.dtype, torch.float32))


def _squares(a: Float[Tensor, "c n"]) -> Float[Tensor, " n"]:
    """Sum of squares over tokens, without a second tensor of a's size."""
    return torch.linalg.vector_norm(a, dim=0).square()


@dataclass(frozen=True)
class Localization:
    """Scores per topic and the sets made from them. `stability`: Jaccard of G between two halves of the prompts."""

    site: SiteName
    model: str
    top: float
    scores: dict[str, Float[Tensor, "l n"]]
    size: Float[Tensor, "l n"]
    tokens: dict[str, int] = field(default_factory=dict)
    stability: float | None = None

    def selected(self, topic: str) -> Neurons:
        """N_t: the top `top` percent of all neurons by the topic's score."""
        scores = self.scores[topic]
        count = max(1, round(scores.numel() * self.top / 100))
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[scores.flatten().topk(count).indices] = True
        return Neurons(mask.view_as(scores), self.site, self.model, scores.float())

    @property
    def general(self) -> Neurons:
        """G: neurons selected for every topic, scored by their mean over topics."""
        sets = [self.selected(topic) for topic in self.scores]
        mask = torch.stack([s.mask for s in sets]).all(0)
        mean = torch.stack(list(self.scores.values())).mean(0)
        return Neurons(mask, self.site, self.model, mean.float())

    def specific(self, topic: str) -> Neurons:
        """P_t: selected for this topic and not general."""
        return self.selected(topic) - self.general


def localize(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    prompts: dict[str, list[Sequence]],
    site: SiteName,
    model: str,
    top: float = 30.0,
    normalized: bool = False,
    batch_tokens: int = 2048,
    advance: Callable[[int], object] = lambda _: None,
) -> Localization:
    """PNLAC over topics. `model` is the base's weights hash, `top` a percentage of all neurons.

    Raises:
        InputError: top outside (0, 100], or no topics.
        ProofError: the two models do not differ on these tokens.
    """
    if not 0 < top <= 100:
        raise InputError(f"--top is {top}; expected a percentage above 0 and at most 100 (the paper uses 30).")
    if not prompts:
        raise InputError("No topics to localise on.")
    if empty := [topic for topic, sequences in prompts.items() if not sequences]:
        raise InputError(f"No prompts for {', '.join(empty)}; every topic needs at least one.")

    def half(k: int) -> dict[str, Contrast]:
        parts = {t: sequences[k::2] for t, sequences in prompts.items()}
        return {t: contrast(base, tuned, part, site, batch_tokens, advance) for t, part in parts.items() if part}

    halves = half(0), half(1)
    whole = _rank(
        {t: sums + halves[1][t] if t in halves[1] else sums for t, sums in halves[0].items()},
        site,
        model,
        top,
        normalized,
    )
    if halves[1].keys() != prompts.keys():
        return whole
    first, second = (_rank(sums, site, model, top, normalized).general for sums in halves)
    return replace(whole, stability=first.jaccard(second))


def _rank(sums: dict[str, Contrast], site: SiteName, model: str, top: float, normalized: bool) -> Localization:
    scores = {t: (c.normalized if normalized else c.score).cpu() for t, c in sums.items()}
    if not any(bool(s.any()) for s in scores.values()):
        raise ProofError(
            "Base and tuned model have equal activations on every token: is the tuned model the base itself?"
        )
    size = torch.stack([c.size.cpu() for c in sums.values()]).mean(0)
    return Localization(site, model, top, scores, size, {t: c.tokens for t, c in sums.items()})
