"""Training with an anchor: stay close to the base's next-token distribution on prompts that are not trained on.

    loss = completion loss + weight * mean over positions of KL(base || model)

The positions are those of an answer the base itself wrote to the prompt (greedy, at most `answers` tokens), or with
`answers` 0 those of the prompt. Every step sees the next `batch_size` prompts of a shuffled, endless list. An anchor of
weight 0 is a plain fine-tune; one whose KL never left 0 held nothing back, which is an error.
"""

from __future__ import annotations

import copy
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from harness.activations import pad, position_ids
from harness.contrast import Sequence
from harness.engines import Settings
from harness.engines.cached import AnswerStore, CachedEngine
from harness.engines.torch import TorchEngine
from harness.errors import InputError, ProofError
from harness.measure import prompt_ids, uses_chat
from harness.runs import digest, package_versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AnchorSettings(BaseModel):
    """How strongly, on how many prompts a step, and over how many tokens of the base's own answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(1.0, gt=0)
    batch_size: int = Field(4, ge=1)
    answers: int = Field(48, ge=0)


@dataclass(frozen=True)
class Anchored:
    """What `tune` is given: the prompts, and how they hold it."""

    prompts: list[str]
    settings: AnchorSettings


class Anchor:
    """The extra loss of one training run. Made before training, while the model is still the base."""

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: Any,
        anchored: Anchored,
        lora: bool,
        seed: int,
        identity: str | None = None,
    ) -> None:
        """`identity`: of the base's weights; given, its answers are kept on disk for the next fine-tune (cached.py)."""
        if not anchored.prompts:
            raise InputError(
                "The anchor has no prompts; name topics that have training items, or give a file of prompts."
            )
        self.settings = anchored.settings
        self.sequences = _sequences(base, tokenizer, anchored, identity)
        self.measured: list[float] = []
        self._pad = int(tokenizer.pad_token_id)
        self._reference = None if lora else copy.deepcopy(base).eval().requires_grad_(False)
        self._generator = torch.Generator().manual_seed(seed)
        self._order: list[int] = []

    def loss(self, model: Any, autocast: torch.dtype | None = None) -> Float[Tensor, ""]:
        """weight * KL(base || model) in nats, averaged over the positions of the next prompts; `model` may be a LoRA one.

        `autocast`: what the trainer runs the model in, so that both are rounded alike.
        """
        chosen = self._next()
        ids, mask = pad([s.ids for s in chosen], self._pad, next(model.parameters()).device)
        starts = torch.tensor([s.start for s in chosen], device=ids.device)
        counted = mask & (torch.arange(ids.shape[1], device=ids.device) >= starts[:, None])
        lowered = torch.autocast(ids.device.type, autocast) if autocast else nullcontext()
        with torch.no_grad(), lowered, nullcontext() if self._reference is not None else model.disable_adapter():
            base = _logprobs(self._reference if self._reference is not None else model, ids, mask, counted)
        with lowered:
            mine = _logprobs(model, ids, mask, counted)
        divergence = (base.exp() * (base - mine)).sum(-1).mean()
        self.measured.append(float(divergence.detach()))
        return self.settings.weight * divergence

    @torch.no_grad()
    def prove(self, trained: Any) -> dict[str, Any]:
        """What the anchor saw, for the manifest: the divergence at every step, and of the trained model.

        Raises:
            ProofError: the trained model is the base on these prompts.
        """
        self.loss(trained.eval())
        if not self.measured[-1]:
            raise ProofError(
                "The trained model's divergence from the base is 0 on the anchor's prompts: nothing was held."
            )
        tokens = sum(len(s.ids) - s.start for s in self.sequences)
        kept = [round(value, 6) for value in self.measured]
        return {**self.settings.model_dump(), "prompts": len(self.sequences), "tokens": tokens, "divergence": kept}

    def _next(self) -> list[Sequence]:
        while len(self._order) < self.settings.batch_size:
            self._order += torch.randperm(len(self.sequences), generator=self._generator).tolist()
        chosen, self._order = self._order[: self.settings.batch_size], self._order[self.settings.batch_size :]
        return [self.sequences[n] for n in chosen]


def trainer_with(anchor: Any) -> type[Any]:
    """trl's SFTTrainer with the loss of an anchor (this one's, or that of margins) added."""
    from trl import SFTTrainer  # type: ignore[attr-defined]

    class AnchoredTrainer(SFTTrainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            extra = anchor.loss(self.accelerator.unwrap_model(model), torch.bfloat16 if self.args.bf16 else None)
            # Given the batch's size the trainer sums losses over accumulated batches; otherwise it averages them itself.
            extra = extra / (1 if num_items_in_batch is None else self.args.gradient_accumulation_steps)
            return (loss[0] + extra, loss[1]) if return_outputs else loss + extra

    return AnchoredTrainer


def _logprobs(
    model: Any, ids: Int[Tensor, "b s"], mask: Bool[Tensor, "b s"], counted: Bool[Tensor, "b s"]
) -> Float[Tensor, "c v"]:
    logits = model(input_ids=ids, attention_mask=mask.long(), position_ids=position_ids(mask), use_cache=False).logits
    return torch.log_softmax(logits[counted].float(), -1)


def _sequences(base: PreTrainedModel, tokenizer: Any, anchored: Anchored, identity: str | None) -> list[Sequence]:
    """Prompts as the model is measured with them, each followed by the base's own answer."""
    chat = uses_chat(tokenizer, "auto")
    prompts = [prompt_ids(tokenizer, text, chat) for text in anchored.prompts]
    if not anchored.settings.answers:
        return [Sequence(ids) for ids in prompts]
    written = _answers(base, tokenizer, prompts, anchored.settings.answers, identity)
    answers = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in written]
    # From the prompt's last token on: its logits are those of the answer's first.
    return [Sequence(ids + answer, len(ids) - 1) for ids, answer in zip(prompts, answers, strict=True)]


def _answers(
    base: PreTrainedModel, tokenizer: Any, prompts: list[list[int]], tokens: int, identity: str | None
) -> list[str]:
    """The base's greedy answers, from the answers' cache where the base is known by name."""
    engine = TorchEngine(base, tokenizer, Settings(max_length=max(map(len, prompts)) + tokens))
    if identity is None:
        return engine.generate(prompts, tokens, [])
    named = digest([identity, "anchor", str(next(base.parameters()).dtype), package_versions()])
    with closing(AnswerStore()) as store:
        return CachedEngine(lambda: engine, store, named, "torch", tokenizer, engine.max_length).generate(
            prompts, tokens, []
        )
