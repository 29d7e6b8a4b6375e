"""vLLM: batched scoring and generation, in this process.

One engine at a time serves one folder of weights. Single-token choices cost one forward pass per prompt (requested
log-probabilities of just those tokens); longer continuations are read from the prompt's log-probabilities.
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

from harness.engines import Settings, Tokens, check_length
from harness.errors import InputError
from harness.models import device, load_config, load_tokenizer

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams


class VLLMEngine:
    """See `harness.engines.Engine`."""

    name = "vllm"

    def __init__(self, folder: str, settings: Settings) -> None:
        _prepare(settings)
        try:
            from vllm import LLM
        except ImportError as error:
            raise InputError(f"vLLM cannot be imported ({error}); run `make setup`, or use --engine torch.") from None
        config = load_config(folder).get_text_config()
        limit = int(getattr(config, "max_position_embeddings", settings.max_length))
        self.max_length = min(settings.max_length, limit)
        self.tokenizer = load_tokenizer(folder)
        more: dict[str, Any] = {} if device() == "cuda" else {"block_size": 32, "distributed_executor_backend": "uni"}
        self._llm = LLM(
            model=folder,
            dtype=settings.dtype,  # type: ignore[arg-type]
            max_model_len=self.max_length,
            max_num_batched_tokens=max(4096, self.max_length),
            max_num_seqs=64,
            enforce_eager=device() == "cpu",
            seed=settings.seed,
            max_logprobs=128,
            disable_log_stats=True,
            trust_remote_code=False,
            load_format="safetensors",
            use_tqdm_on_load=False,
            **more,
        )

    def score_continuations(self, requests: list[tuple[Tokens, Tokens]]) -> list[tuple[float, bool]]:
        from vllm import SamplingParams

        for context, continuation in requests:
            check_length(context, len(continuation) + 1, self.max_length)
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self._run([context + continuation for context, continuation in requests], params, "scoring")
        return [_sum(output, len(request[1])) for output, request in zip(outputs, requests, strict=True)]

    def score_choices(self, requests: list[tuple[Tokens, Tokens]]) -> list[list[float]]:
        from vllm import SamplingParams

        params = []
        for context, options in requests:
            check_length(context, 1, self.max_length)
            params.append(SamplingParams(temperature=0, max_tokens=1, detokenize=False, logprob_token_ids=options))
        outputs = self._run([context for context, _ in requests], params, "choices")
        scores = []
        for output, (_, options) in zip(outputs, requests, strict=True):
            found = (output.outputs[0].logprobs or [{}])[0]
            scores.append([found[token].logprob for token in options])
        return scores

    def generate(
        self, prompts: list[Tokens], max_tokens: int, stop: list[str], temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        from vllm import SamplingParams

        for prompt in prompts:
            check_length(prompt, max_tokens, self.max_length)
        drawn: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "stop": stop}
        params = [SamplingParams(seed=seed + n if temperature else None, **drawn) for n in range(len(prompts))]
        return [output.outputs[0].text for output in self._run(prompts, params, "generating")]

    def _run(
        self, prompts: list[Tokens], params: SamplingParams | list[SamplingParams], what: str
    ) -> list[RequestOutput]:
        import functools

        from harness.progress import bar

        inputs: Any = [{"prompt_token_ids": ids} for ids in prompts]
        return self._llm.generate(inputs, params, use_tqdm=functools.partial(bar, what=what))

    def close(self) -> None:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()
        gc.collect()


def _sum(output: RequestOutput, length: int) -> tuple[float, bool]:
    ids = output.prompt_token_ids or []
    entries = (output.prompt_logprobs or [])[-length:]
    total, greedy = 0.0, True
    for token, entry in zip(ids[-length:], entries, strict=True):
        assert entry is not None
        total += entry[token].logprob
        greedy = greedy and entry[token].rank == 1
    return total, greedy


def _prepare(settings: Settings) -> None:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.memory))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
