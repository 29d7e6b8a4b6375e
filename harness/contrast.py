"""Contrasting the activations of two models on the same tokens: running sums per neuron, kept apart by group of sequences.

Sequences of all groups share batches. Memory does not grow with the number of sequences. A fine-tune that is an adapter needs
one model in memory: loaded into it by transformers' `load_adapter`, given as both `base` and `tuned`, and switched off for
the base's pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from harness.activations import batches, pad
from harness.contrast_sums import Sums
from harness.errors import InputError
from harness.memory import halving
from harness.sites import SiteName, mlps, width

if TYPE_CHECKING:
    from transformers import PreTrainedModel

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Sequence:
    """Token ids of one prompt (and completion); scores count the positions from `start` on."""

    ids: list[int]
    start: int = 0


@dataclass
class Contrast:
    """Sums over a topic's tokens, [q, l, n] float64 on the models' device, and how many tokens.

    The q rows: (tuned - base)^2, |base|, and where moments were asked for base and base^2.
    """

    sums: Float[Tensor, "q l n"]
    tokens: int = 0

    def __add__(self, other: Contrast) -> Contrast:
        """Sums over the tokens of both."""
        return Contrast(self.sums + other.sums, self.tokens + other.tokens)

    @property
    def score(self) -> Float[Tensor, "l n"]:
        """R_t: root mean squared difference, in activation units."""
        return (self.sums[0] / self.tokens).sqrt()

    @property
    def normalized(self) -> Float[Tensor, "l n"]:
        """R_t in units of the base's standard deviation; 0 where the base never varies.

        Raises:
            InputError: contrasted without moments.
        """
        if len(self.sums) < 4:
            raise InputError("Normalised scores need the base's moments; contrast the models with moments=True.")
        mean, mean_square = self.sums[2:] / self.tokens
        variance = mean_square - mean**2
        varies = variance > 1e-12 * mean_square  # below this the difference of the two sums is rounding
        return torch.where(varies, self.score / variance.clamp(min=0).sqrt(), 0.0)

    @property
    def size(self) -> Float[Tensor, "l n"]:
        """Mean |activation| of the base."""
        return self.sums[1] / self.tokens


def contrast(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    sequences: list[Sequence],
    site: SiteName,
    batch_tokens: int = 2048,
    advance: Callable[[int], object] = lambda _: None,
    moments: bool = False,
) -> Contrast:
    """The running sums of one list of sequences; see `contrasts`."""
    return contrasts(base, tuned, {None: sequences}, site, batch_tokens, advance, moments)[None]


def contrasts(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    groups: Mapping[K, list[Sequence]],
    site: SiteName,
    batch_tokens: int = 2048,
    advance: Callable[[int], object] = lambda _: None,
    moments: bool = False,
    devices: Seq[str] = (),
) -> dict[K, Contrast]:
    """One streaming pass of both models over the same token ids of all groups, whose sequences share batches.

    One model given twice is its own base with its adapter switched off. `moments`: also sum the base's activations and
    their squares, for normalised scores. `devices`: further ones that share the batches,
    with copies of both models. `advance(n)` is told of n finished sequences.

    Raises:
        InputError: a group without selected tokens, or models of different shapes.
    """
    shape = (len(mlps(base)), width(base, site))
    if shape != (len(mlps(tuned)), width(tuned, site)):
        raise InputError(
            "The two models have different layers or widths; PNLAC contrasts a model with its own fine-tune."
        )
    if not all(any(s.start < len(s.ids) for s in sequences) for sequences in groups.values()):
        raise InputError("No tokens to contrast: with --tokens completion the prompts need completions.")
    keys, flat = list(groups), [(number, s) for number, key in enumerate(groups) for s in groups[key]]
    end = base.config.eos_token_id
    pad_id = int(end[0] if isinstance(end, list) else end or 0)

    def total(tokens: int) -> Sums:
        waiting = iter(list(batches([sequence.ids for _, sequence in flat], tokens)))  # threads may share a list's
        return _spread(lambda models: work(models, waiting), base, tuned, devices)

    def work(models: tuple[PreTrainedModel, PreTrainedModel], waiting: Iterator[list[int]]) -> Sums:
        device = next(models[0].parameters()).device
        sums = Sums.empty(4 if moments else 2, len(keys), *shape, device)
        for batch in waiting:
            numbers = torch.tensor([flat[n][0] for n in batch], device=device)
            starts = torch.tensor([flat[n][1].start for n in batch], device=device)
            ids, mask = pad([flat[n][1].ids for n in batch], pad_id, device)
            chosen = mask & (torch.arange(ids.shape[1], device=device) >= starts[:, None])
            of_group = torch.arange(len(keys), device=device)[:, None, None] == numbers[:, None]
            sums.add(*models, ids, (of_group & chosen).flatten(1), site)
            advance(len(batch))
        return sums

    # A batch that fails has been summed in part, so the sums begin anew.
    summed = halving(batch_tokens, max(len(sequence.ids) for _, sequence in flat), total)
    return {key: Contrast(summed.sums[:, n], int(summed.tokens[n])) for n, key in enumerate(keys)}


def _spread(
    work: Callable[[tuple[PreTrainedModel, PreTrainedModel]], Sums],
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    devices: Seq[str],
) -> Sums:
    """`work` with both models here and, at the same time, with copies of them on each further device; the sums added."""
    placed = [_placed(copy.deepcopy((base, tuned)), device) for device in devices]
    with ThreadPoolExecutor(max(1, len(devices))) as pool:
        elsewhere = [pool.submit(work, models) for models in placed]
        total = work((base, tuned))
        for part in elsewhere:
            total.merge(part.result())
    return total


def _placed(models: tuple[Any, Any], device: str) -> tuple[Any, Any]:
    """Both models on a device; copied together, so that one model given twice stays one."""
    return models[0].to(device), models[1].to(device)
