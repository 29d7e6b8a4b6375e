"""vLLM: batched scoring and generation, in this process.

One engine serves every variant of one architecture: weights are swapped and gates switched between batches, without a
restart. Single-token choices cost one forward pass per prompt (requested log-probabilities of just those tokens); longer
continuations are read from the prompt's log-probabilities.
"""

from __future__ import annotations

import gc
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness.engines import Settings, Tokens, check_length, probe_prompt
from harness.engines.vllm_plugin import EXTENSION, LOAD_FORMAT
from harness.errors import InputError, ProofError, choices
from harness.interventions import ZERO, Op
from harness.models import device, load_config, load_tokenizer

if TYPE_CHECKING:
    from harness.neurons import Neurons
    from vllm import RequestOutput, SamplingParams


_NOT_SHAPE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "pad_token_id"}


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
        self.folder, self._gated = folder, set[str]()
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
            load_format=LOAD_FORMAT,
            worker_extension_cls=EXTENSION,
            additional_config={LOAD_FORMAT: 1},  # keeps compiled graphs with gates apart from those without
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

    def intervene(self, neurons: Neurons | None, op: Op) -> float:
        """Carry out an op on the neurons from now on, in place of what was carried out before; None ends it.

        Returns:
            the largest change of an activation on a probe prompt (NaN on a compiled engine, where answers are compared).

        Raises:
            InputError: a model without gates, or neurons of another shape.
            ProofError: the op changes nothing on the probe prompt.
        """
        for site in {*self._gated, *([neurons.site] if neurons is not None else [])}:
            self._gate(site, None, op)
        self._gated = set()
        if neurons is None or not len(neurons) or op.identity:
            return 0.0
        before = self._probe()
        held = self._gate(neurons.site, neurons, op)
        self._gated = {neurons.site}
        after = self._probe()
        effect = max(self._llm.collective_rpc("stance_effect", args=(neurons.site,)))
        if not held or (effect == 0.0 and before == after):
            self.intervene(None, op)
            raise ProofError(f"{op} on {len(neurons)} neurons at {neurons.site} changed nothing on a probe prompt.")
        return effect or float("nan")

    def _gate(self, site: str, neurons: Neurons | None, op: Op) -> int:
        layers = int(load_config(self.folder).get_text_config().num_hidden_layers)
        chosen: list[list[int]] = [[] for _ in range(layers)]
        if neurons is not None:
            neurons.check_shape(neurons.mask.shape[1], layers)
            chosen = [neurons.indices(layer).tolist() for layer in range(layers)]
        held = self._llm.collective_rpc("stance_gate", args=(site, chosen, asdict(op)))
        self._llm.reset_prefix_cache()  # what is cached there was computed under the gates as they were
        return sum(held) if site == "mlp_act" else max(held)

    def _probe(self) -> list[float]:
        vocabulary = len(self.tokenizer)
        options = list(range(0, vocabulary, max(1, vocabulary // 64)))[:64]
        return self.score_choices([(probe_prompt(vocabulary, self.max_length), options)])[0]

    def swap(self, folder: str) -> None:
        """Serve the weights of another folder of the same architecture; nothing is restarted or compiled again.

        Raises:
            InputError: a model of another shape or vocabulary.
        """
        mine, other = (_shape(name) for name in (self.folder, folder))
        if different := [key for key in mine if mine[key] != other.get(key)]:
            raise InputError(
                f"{folder} cannot be swapped in: it differs in {choices(different)}; start another engine."
            )
        self.intervene(None, ZERO)
        self._llm.collective_rpc("stance_swap", args=(folder,))
        self._llm.reset_prefix_cache()
        self.folder = folder
        self.tokenizer = load_tokenizer(folder)

    def close(self) -> None:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()
        gc.collect()


def _shape(folder: str) -> dict[str, Any]:
    """What two folders must agree in for one engine to serve both."""
    return {key: value for key, value in load_config(folder).to_dict().items() if key not in _NOT_SHAPE}


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
