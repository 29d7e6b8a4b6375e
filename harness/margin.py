"""Training with margins held: the model's preference between two answers stays the base's on questions not trained on.

    m(q) = mean log-probability per token of one answer to q, minus that of the other (nats)
    loss = completion loss + weight * mean over pairs of (m of the model - m of the base)^2

Which answer is whose does not matter: the square holds the margin, whatever its direction. It asks for what the `pairs`
probes measure, on other questions, where an anchor (harness/anchor.py) asks for the whole distribution. Every step sees the
next `batch_size` pairs of a shuffled, endless list. Margins that never left the base's held nothing, which is an error.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from harness.activations import pad, position_ids
from harness.contrast import Sequence
from harness.errors import InputError, ProofError
from harness.measure import prompt_ids, uses_chat

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUNDING = 1e-5  # nats per token; one model's margins in float32 differ by less from run to run


class MarginSettings(BaseModel):
    """How strongly, and on how many pairs a step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(30.0, gt=0)
    batch_size: int = Field(2, ge=1)


@dataclass(frozen=True)
class HeldMargins:
    """What `tune` is given: (question, one answer, the other), and how they hold it."""

    pairs: list[tuple[str, str, str]]
    settings: MarginSettings

    @property
    def prompts(self) -> list[str]:
        return [question for question, _, _ in self.pairs]


class MarginAnchor:
    """The extra loss of one training run. Made before training, while the model is still the base."""

    def __init__(
        self, base: PreTrainedModel, tokenizer: Any, held: HeldMargins, seed: int, autocast: torch.dtype | None = None
    ) -> None:
        if not held.pairs:
            raise InputError("There are no pairs whose margins could be held; name topics that have training items.")
        self.settings = held.settings
        self.measured: list[float] = []
        chat = uses_chat(tokenizer, "auto")
        self._pad = int(tokenizer.pad_token_id)
        self._sequences = [_sequences(tokenizer, *pair, chat) for pair in held.pairs]
        self._autocast = autocast
        self.base = self._all(base)
        self._generator = torch.Generator().manual_seed(seed)
        self._order: list[int] = []

    def margins(self, model: Any, chosen: Seq[int], autocast: torch.dtype | None = None) -> Float[Tensor, " b"]:
        """Preference for the second answer over the first in nats per token, of the chosen pairs."""
        both = [sequence for n in chosen for sequence in self._sequences[n]]
        ids, mask = pad([s.ids for s in both], self._pad, next(model.parameters()).device)
        starts = torch.tensor([s.start for s in both], device=ids.device)
        answer = mask & (torch.arange(ids.shape[1], device=ids.device) >= starts[:, None])
        inputs = {"input_ids": ids, "attention_mask": mask.long(), "position_ids": position_ids(mask)}
        with torch.autocast(ids.device.type, autocast) if autocast else nullcontext():
            logits = model(**inputs, use_cache=False).logits[:, :-1]
        counted, target = answer[:, 1:], ids[:, 1:]
        picked = torch.log_softmax(logits[counted].float(), -1).gather(-1, target[counted][:, None])[:, 0]
        means = torch.stack([part.mean() for part in picked.split(counted.sum(1).tolist())])
        return means[1::2] - means[::2]

    def loss(self, model: Any, autocast: torch.dtype | None = None) -> Float[Tensor, ""]:
        """weight * mean squared change of the next pairs' margins, in squared nats per token."""
        chosen = self._next()
        moved = self.margins(model, chosen, autocast) - self.base[chosen]
        squared = (moved**2).mean()
        self.measured.append(float(squared.detach()))
        return self.settings.weight * squared

    def prove(self, trained: Any) -> dict[str, Any]:
        """How far the margins moved at every step, and all of them in the trained model, for the manifest.

        Raises:
            ProofError: the trained model has the base's margins, but for rounding.
        """
        moved = self._all(trained.eval()) - self.base
        if float(moved.abs().max()) < ROUNDING:
            raise ProofError("The trained model's margins are the base's: training changed nothing that could be held.")
        kept = [round(value, 6) for value in (*self.measured, float((moved**2).mean()))]
        return {**self.settings.model_dump(), "pairs": len(self._sequences), "squared_change": kept}

    @torch.no_grad()
    def _all(self, model: Any) -> Float[Tensor, " b"]:
        """Every margin, in the same batches each time: in other batches one model's margins differ by rounding."""
        size, everything = self.settings.batch_size, range(len(self._sequences))
        return torch.cat([self.margins(model, everything[n : n + size], self._autocast) for n in everything[::size]])

    def _next(self) -> list[int]:
        while len(self._order) < self.settings.batch_size:
            self._order += torch.randperm(len(self._sequences), generator=self._generator).tolist()
        chosen, self._order = self._order[: self.settings.batch_size], self._order[self.settings.batch_size :]
        return chosen


def _sequences(tokenizer: Any, question: str, one: str, other: str, chat: bool) -> tuple[Sequence, Sequence]:
    ids = prompt_ids(tokenizer, question, chat)
    first, second = (list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (one, other))
    return Sequence(ids + first, len(ids)), Sequence(ids + second, len(ids))
