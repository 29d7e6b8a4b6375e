"""Torch: the engine for what must follow another model token by token, and the reference for vLLM.

An optional donor patch (recipient = this engine's model) applies to scoring and to greedy generation alike.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from harness.activations import pad, position_ids
from harness.engines import DeadEngineError, Settings, Tokens, check_length, probe_prompt
from harness.errors import InputError
from harness.interventions import DonorPatch, Op, applying
from harness.memory import in_batches
from harness.models import device, load_model, load_tokenizer
from harness.neurons import Neurons
from harness.ranges import RangeOp

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"auto": None, "bfloat16": torch.bfloat16, "float32": torch.float32}


class TorchEngine:
    """See `harness.engines.Engine`. With `donor` and `patch`, every pass runs the donor first and patches the model."""

    name = "torch"
    dead = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Settings | None = None,
        donor: PreTrainedModel | None = None,
        patch: DonorPatch | None = None,
    ) -> None:
        self._settings = settings or Settings()
        self.donor, self.patch = donor, patch
        self._batch_tokens = self._settings.batch_tokens
        self._intervention = ExitStack()
        self._serve(model, tokenizer)

    def _serve(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        longest = self._settings.max_length
        self.max_length = min(longest, int(getattr(model.config.get_text_config(), "max_position_embeddings", longest)))
        self._pad = int(tokenizer.pad_token_id or 0)  # type: ignore[arg-type]
        self._check_head()

    @classmethod
    def from_folder(cls, folder: str, settings: Settings) -> TorchEngine:
        """Load weights and tokenizer."""
        model = load_model(folder, DTYPES[settings.dtype], device())
        return cls(model, load_tokenizer(folder), settings)

    def score_continuations(self, requests: list[tuple[Tokens, Tokens]]) -> list[tuple[float, bool]]:
        for context, continuation in requests:
            check_length(context, len(continuation), self.max_length)
        sequences = [context + continuation for context, continuation in requests]
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        from harness.progress import bar

        def score(batch: list[int]) -> None:
            ids, mask = pad([sequences[n] for n in batch], self._pad, self.model.device)
            hidden = self._hidden(ids, mask)
            for row, n in enumerate(batch):
                end, length = len(sequences[n]), len(requests[n][1])
                logprobs = self._head(hidden[row, end - length - 1 : end - 1])
                target = ids[row, end - length : end]
                picked = logprobs.gather(-1, target[:, None])
                scores[n] = float(picked.double().sum()), bool((logprobs.argmax(-1) == target).all())
            progress.update(len(batch))

        with bar(total=len(requests), what="scoring") as progress:
            self._in_batches(sequences, score)
        return scores

    def score_choices(self, requests: list[tuple[Tokens, Tokens]]) -> list[list[float]]:
        contexts = [context for context, _ in requests]
        scores: list[list[float]] = [[] for _ in requests]
        for context in contexts:
            check_length(context, 1, self.max_length)

        def score(batch: list[int]) -> None:
            ids, mask = pad([contexts[n] for n in batch], self._pad, self.model.device)
            hidden = self._hidden(ids, mask)
            for row, n in enumerate(batch):
                logprobs = self._head(hidden[row, len(contexts[n]) - 1])
                scores[n] = [float(logprobs[token]) for token in requests[n][1]]

        self._in_batches(contexts, score)
        return scores

    def generate(
        self, prompts: list[Tokens], max_tokens: int, stop: list[str], temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        answers = [""] * len(prompts)
        for prompt in prompts:
            check_length(prompt, max_tokens, self.max_length)

        def write(batch: list[int]) -> None:
            ids, mask = pad([prompts[n] for n in batch], self._pad, self.model.device, left=True)
            draws = [torch.Generator().manual_seed(seed + n) for n in batch] if temperature else []
            for n, tokens in zip(batch, self._decode(ids, mask, max_tokens, temperature, draws), strict=True):
                text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
                answers[n] = min((text.split(s)[0] for s in stop), key=len, default=text)

        self._in_batches(prompts, write, share=2)
        return answers

    def _in_batches(self, sequences: list[Tokens], work: Callable[[list[int]], None], share: int = 1) -> None:
        """`work` on every batch; a batch that was too large for the memory makes the later ones smaller, too."""
        try:
            held = in_batches(sequences, self._batch_tokens // share, work)
        except torch.AcceleratorError as error:
            self.dead = True
            raise DeadEngineError(self.name, error) from error
        self._batch_tokens = min(self._batch_tokens, held * share)

    @torch.no_grad()
    def _hidden(self, ids: Int[Tensor, "b s"], mask: Bool[Tensor, "b s"]) -> Float[Tensor, "b s d"]:
        """Final hidden states of the (patched) model; only wanted positions are turned into logits."""
        inputs = {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "position_ids": position_ids(mask),
            "use_cache": False,
        }
        donors, recipients = self._patching()
        with donors:
            if self.donor is not None and self.patch is not None:
                self.donor.base_model(**inputs)
        with recipients:
            return self.model.base_model(**inputs).last_hidden_state

    def _patching(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        if self.donor is None or self.patch is None:
            return nullcontext(), nullcontext()
        return self.patch.recording(self.donor), self.patch.replacing(self.model)

    @torch.no_grad()
    def _head(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        head = self.model.get_output_embeddings()
        assert head is not None
        config = self.model.config.get_text_config()
        scale = (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
        logits = head(hidden).float() * scale
        cap = getattr(config, "final_logit_softcapping", None)
        if cap:
            logits = torch.tanh(logits / cap) * cap
        return torch.log_softmax(logits, -1)

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuse a model that makes its logits in a way `_head` does not know."""
        few = {"input_ids": torch.arange(4, device=self.model.device)[None], "use_cache": False}
        own = torch.log_softmax(self.model(**few).logits.float(), -1)
        mine = self._head(self.model.base_model(**few).last_hidden_state)
        if float((own - mine).abs().max()) > 0.02 * float(own.abs().max()):  # bf16 logits are this coarse
            raise InputError(
                f"{type(self.model).__name__} scales its logits in a way the Torch engine does not know; use vllm."
            )

    @torch.no_grad()
    def _decode(
        self,
        ids: Int[Tensor, "b s"],
        mask: Bool[Tensor, "b s"],
        max_tokens: int,
        temperature: float = 0.0,
        draws: list[torch.Generator] | None = None,
    ) -> list[list[int]]:
        """Decoding with the recipient's own tokens; donor and recipient each keep a cache. `draws`: one per row."""
        from transformers import DynamicCache

        ends = self._end_tokens()
        caches = {"recipient": DynamicCache(config=self.model.config)}
        if self.donor is not None:
            caches["donor"] = DynamicCache(config=self.donor.config)
        written: list[list[int]] = [[] for _ in range(len(ids))]
        running = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        step = ids
        for _ in range(max_tokens):
            inputs = {
                "input_ids": step,
                "attention_mask": mask.long(),
                "position_ids": position_ids(mask)[:, -step.shape[1] :],
                "use_cache": True,
            }
            donors, recipients = self._patching()
            with donors:
                if self.donor is not None and self.patch is not None:
                    self.donor.base_model(**inputs, past_key_values=caches["donor"])
            with recipients:
                hidden = self.model.base_model(**inputs, past_key_values=caches["recipient"]).last_hidden_state
            chosen = _next(self._head(hidden[:, -1]), temperature, draws or [])
            for row in running.nonzero().flatten().tolist():
                written[row].append(int(chosen[row]))
            running &= ~torch.isin(chosen, ends)
            if not running.any():
                break
            step = chosen[:, None]
            mask = torch.cat([mask, torch.ones_like(step, dtype=torch.bool)], 1)
        return written

    def _end_tokens(self) -> Tensor:
        ends: set[int] = set()
        for source in (self.model.generation_config, self.tokenizer):
            value = getattr(source, "eos_token_id", None)
            listed = value if isinstance(value, list) else [value]
            ends |= {int(token) for token in listed if token is not None}
        return torch.tensor(sorted(ends), dtype=torch.long, device=self.model.device)

    def intervene(self, neurons: Neurons | None, op: Op | RangeOp) -> float:
        self._intervention.close()
        if neurons is None or not len(neurons) or op.identity:
            return 0.0
        self._intervention = ExitStack()
        effect = self._intervention.enter_context(applying(self.model, neurons, op))
        self.score_choices([(probe_prompt(len(self.tokenizer), self.max_length), [0])])
        if not effect.largest:
            self._intervention.close()  # raises ProofError
        return effect.largest

    def swap(self, folder: str) -> None:
        self._intervention.close()
        self._serve(load_model(folder, DTYPES[self._settings.dtype], device()), load_tokenizer(folder))

    def adapt(self, adapter: str | None) -> float:
        if adapter is not None:
            raise InputError("The Torch engine serves adapters merged; adapters=request needs vLLM.")
        return 0.0

    def close(self) -> None:
        self._intervention.close()
        del self.model, self.donor
        gc.collect()


def _next(logprobs: Float[Tensor, "b v"], temperature: float, draws: list[torch.Generator]) -> Int[Tensor, " b"]:
    """The likeliest token of every row, or one drawn with the row's own generator."""
    if not draws:
        return logprobs.argmax(-1)
    shares = torch.softmax(logprobs.cpu() / temperature, -1)
    drawn = [torch.multinomial(row, 1, generator=draw) for row, draw in zip(shares, draws, strict=True)]
    return torch.cat(drawn).to(logprobs.device)
