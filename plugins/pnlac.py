"""PNLAC: Political Neuron Localization through Activation Contrasting (arXiv 2508.02360, ACL 2026).

R_t[l,i] = sqrt( 1/T_t * sum over the T_t selected tokens of topic t of (a_tuned[l,i] - a_base[l,i])^2 )
N_t = the top k% of all neurons by R_t, ranked over all layers; general G = intersection of N_t over topics, ranked by
the mean R_t; specific P_t = N_t minus G. Tokens of the prompt (the paper) or of the completion (SafetyNeuron,
arXiv 2406.14144). `normalized`: R_t divided by the base's standard deviation of that neuron over the same tokens, since
raw activation size grows with depth and otherwise decides the ranking. Does nothing useful on two equal models: all
scores are zero, which is refused.

    stance localize pnlac --base smollm2-135m-instruct --tuned runs/tuned --topics all --site mlp_act --out runs/loc
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from harness.contrast import Contrast, Sequence, contrasts
from harness.errors import InputError, ProofError
from harness.neurons import Neurons
from harness.sites import SiteName

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    devices: Seq[str] = (),
) -> Localization:
    """PNLAC over topics. `model` is the base's weights hash, `top` a percentage of all neurons.

    `devices`: further ones that take a share of the batches, such as the second GPU.

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

    halves = {(t, k): sequences[k::2] for t, sequences in prompts.items() for k in (0, 1) if sequences[k::2]}
    sums = contrasts(base, tuned, halves, site, batch_tokens, advance, normalized, devices)
    both = {t: sums[t, 0] + sums[t, 1] if (t, 1) in sums else sums[t, 0] for t in prompts}
    whole = _rank(both, site, model, top, normalized)
    if len(sums) < 2 * len(prompts):
        return whole
    first, second = (_rank({t: sums[t, k] for t in prompts}, site, model, top, normalized).general for k in (0, 1))
    return replace(whole, stability=first.jaccard(second))


def _rank(sums: dict[str, Contrast], site: SiteName, model: str, top: float, normalized: bool) -> Localization:
    scores = {t: (c.normalized if normalized else c.score).cpu() for t, c in sums.items()}
    if not any(bool(s.any()) for s in scores.values()):
        raise ProofError(
            "Base and tuned model have equal activations on every token: is the tuned model the base itself?"
        )
    size = torch.stack([c.size.cpu() for c in sums.values()]).mean(0)
    return Localization(site, model, top, scores, size, {t: c.tokens for t, c in sums.items()})
