"""vLLM: batched scoring and generation, in this process.

One engine serves every variant of one architecture: weights are swapped and gates switched between batches, without a
restart. vllm_scoring.py says how choices and continuations are scored, gates.py how interventions are carried out.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.engines import DeadEngineError, Settings, Tokens, check_length, longest, probe_prompt
from harness.engines.vllm_adapters import MOST_RANK, check_beside
from harness.engines.vllm_plugin import EXTENSION, LOAD_FORMAT
from harness.engines.vllm_scoring import SEQUENCES, STEP, Ask, choice_scores, continuation_scores, whole_steps
from harness.errors import InputError, ProofError, choices
from harness.interventions import ZERO, Op
from harness.models import device, load_config, load_tokenizer, weights_hash
from harness.sites import width_by_config

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest

    from harness.neurons import Neurons
    from harness.ranges import RangeOp


# The second keeps compiled graphs with gates apart from those without.
GATED: dict[str, Any] = {"load_format": LOAD_FORMAT, "additional_config": {LOAD_FORMAT: 1}}
_NOT_SHAPE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "pad_token_id"}


class VLLMEngine:
    """See `harness.engines.Engine`."""

    name = "vllm"
    dead = False

    def __init__(self, folder: str, settings: Settings) -> None:
        more = prepared(settings.memory, settings.tensor_parallel)
        try:
            from vllm import LLM
        except ImportError as error:
            raise InputError(f"vLLM cannot be imported ({error}); run `make setup`, or use --engine torch.") from None
        self.max_length = longest(folder, settings)
        self.tokenizer = load_tokenizer(folder)
        self.folder = folder
        self._gated: Neurons | None = None
        self._adapter: LoRARequest | None = None
        self._adapters = 0  # adapters named so far: vLLM caches by name and number
        self._beside = settings.adapters == "request"
        self._weights = weights_hash(folder)
        # Under `auto` the checkpoint's dtype is the engine's, so another's cannot be served by it.
        self._passed_over = _NOT_SHAPE if settings.dtype != "auto" else _NOT_SHAPE - {"dtype", "torch_dtype"}
        served: dict[str, Any] = {"enable_lora": True, "max_lora_rank": MOST_RANK} if self._beside else GATED
        self._llm = LLM(
            model=folder,
            dtype=settings.dtype,  # type: ignore[arg-type]
            max_model_len=self.max_length,
            max_num_batched_tokens=max(STEP, self.max_length),
            max_num_seqs=SEQUENCES,
            seed=settings.seed,
            max_logprobs=128,
            disable_log_stats=True,
            trust_remote_code=False,
            worker_extension_cls=EXTENSION,
            use_tqdm_on_load=False,
            **served,
            **more,
        )
        if self._beside:
            self._llm.collective_rpc("stance_plain_head")
        self._block = int(self._llm.llm_engine.vllm_config.cache_config.block_size)

    def score_continuations(self, requests: list[tuple[Tokens, Tokens]]) -> list[tuple[float, bool]]:
        for context, continuation in requests:
            check_length(context, len(continuation) + 1, self.max_length)
        return continuation_scores(self._run, requests, self._block)

    def score_choices(self, requests: list[tuple[Tokens, Tokens]]) -> list[list[float]]:
        for context, _ in requests:
            check_length(context, 1, self.max_length)
        return [scores for scores, _ in choice_scores(self._run, requests)]

    def generate(
        self, prompts: list[Tokens], max_tokens: int, stop: list[str], temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        from vllm import SamplingParams

        for prompt in prompts:
            check_length(prompt, max_tokens, self.max_length)
        drawn: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "stop": stop}
        params = [SamplingParams(seed=seed + n if temperature else None, **drawn) for n in range(len(prompts))]
        # Where a step holds part of a prompt, vLLM takes a draw back, which generators on a CPU refuse.
        whole = temperature and device() == "cpu"
        parts = whole_steps(prompts, max(STEP, self.max_length)) if whole else [slice(None)]
        outputs = [output for part in parts for output in self._run(prompts[part], params[part], "generating")]
        return [output.outputs[0].text for output in outputs]

    def _run(
        self, prompts: list[Tokens], params: SamplingParams | list[SamplingParams], what: str
    ) -> list[RequestOutput]:
        import functools

        from vllm.v1.engine.exceptions import EngineDeadError

        from harness.progress import bar

        inputs: Any = [{"prompt_token_ids": ids} for ids in prompts]
        counted = functools.partial(bar, what=what)
        try:
            return self._llm.generate(inputs, params, use_tqdm=counted, lora_request=self._adapter)
        except (RuntimeError, OSError, EOFError, MemoryError, EngineDeadError) as error:
            self.dead = True  # what it had begun stays in its queue
            raise DeadEngineError(self.name, error) from error

    def intervene(self, neurons: Neurons | None, op: Op | RangeOp) -> float:
        """Carry out an op on the neurons from now on, in place of what was carried out before; None ends it.

        Returns:
            the largest change of an activation on a probe prompt (NaN on a compiled engine, where answers are compared).

        Raises:
            InputError: a model without gates, or neurons of another shape.
            ProofError: the op changes nothing on the probe prompt.
        """
        if self.dead and neurons is None:
            return 0.0
        if self._gated is not None:
            gate(self._llm, self._gated - self._gated, ZERO)
            self._gated = None
        if neurons is None or not len(neurons) or op.identity:
            return 0.0
        effect = carry_out(self._llm, self._run, len(self.tokenizer), self.max_length, neurons, op)
        self._gated = neurons
        return effect

    def swap(self, folder: str) -> None:
        """Serve the weights of another folder of the same architecture; nothing is restarted or compiled again.

        Raises:
            InputError: a model of another shape or vocabulary.
        """
        mine, other = (_shape(name, self._passed_over) for name in (self.folder, folder))
        if different := [key for key in mine if mine[key] != other.get(key)]:
            raise InputError(
                f"{folder} cannot be swapped in: it differs in {choices(different)}; start another engine."
            )
        self.adapt(None)
        self.intervene(None, ZERO)
        if weights_hash(folder) != self._weights:
            if self._beside:
                raise InputError("Weights are not swapped below adapters; start another engine.")
            self._llm.collective_rpc("stance_swap", args=(folder,))
        self._llm.reset_prefix_cache()  # also for the same weights: the base asked again is to be computed again
        self.folder, self._weights = folder, weights_hash(folder)
        self.tokenizer = load_tokenizer(folder)

    def adapt(self, adapter: str | None) -> float:
        """Answer with a LoRA adapter beside the base from now on, in place of the one before; None ends it.

        Returns:
            the largest change of a log-probability on the probe prompt.

        Raises:
            InputError: an engine that was not started for it, or an adapter that cannot be computed beside a base.
            ProofError: the adapter changes nothing on the probe prompt.
        """
        if adapter is None:
            self._adapter = None
            return 0.0
        if not self._beside:
            raise InputError("This engine serves adapters merged; start it with adapters=request.")
        check_beside(Path(adapter))
        from vllm.lora.request import LoRARequest

        probe = _probe(len(self.tokenizer), self.max_length)
        self._adapter = None
        ((before, _),) = choice_scores(self._run, probe)
        self._adapters += 1
        self._adapter = LoRARequest(f"adapter-{self._adapters}", self._adapters, adapter)
        ((after, _),) = choice_scores(self._run, probe)
        changed = max((abs(new - old) for new, old in zip(after, before, strict=True) if new != old), default=0.0)
        if not changed:
            self._adapter = None
            raise ProofError(f"Adapter {adapter} changed nothing on a probe prompt.")
        return changed

    def close(self) -> None:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()
        gc.collect()


def carry_out(llm: LLM, ask: Ask, vocabulary: int, most: int, neurons: Neurons, op: Op | RangeOp) -> float:
    """Set the gates and prove on a probe prompt that they act; `most`: tokens per request.

    Returns:
        the largest change of an activation (NaN on a compiled engine, where answers before and after are compared).

    Raises:
        InputError: a model without gates, or neurons of another shape.
        ProofError: the op changes nothing on the probe prompt; the gates are neutral again.
    """
    probe = _probe(vocabulary, most)
    before = choice_scores(ask, probe)
    held = gate(llm, neurons, op)
    after = choice_scores(ask, probe)
    effect = max(llm.collective_rpc("stance_effect", args=(neurons.site,)))
    if not held or (effect == 0.0 and before == after):
        gate(llm, neurons - neurons, ZERO)
        raise ProofError(f"{op} on {len(neurons)} neurons at {neurons.site} changed nothing on a probe prompt.")
    return effect or float("nan")


def _probe(vocabulary: int, most: int) -> list[tuple[Tokens, Tokens]]:
    """The probe prompt with options spread over the vocabulary."""
    return [(probe_prompt(vocabulary, most), list(range(0, vocabulary, max(1, vocabulary // 64)))[:64])]


def gate(llm: LLM, neurons: Neurons, op: Op | RangeOp) -> int:
    """Set the gates of the neurons' site to the op at the neurons, and to nothing elsewhere; how many are held.

    Raises:
        InputError: a model without gates, neurons of another depth or width, or ranges of another shape.
    """
    config = llm.llm_engine.model_config.hf_text_config
    wide = width_by_config(config, neurons.site) or neurons.mask.shape[1]
    neurons.check_shape(wide, int(config.num_hidden_layers))
    op.check(neurons)
    chosen = [neurons.indices(layer) for layer in range(len(neurons.mask))]
    numbers = [op.at(layer, index).numbers() for layer, index in enumerate(chosen)]
    held = llm.collective_rpc("stance_gate", args=(neurons.site, [index.tolist() for index in chosen], numbers))
    llm.reset_prefix_cache()  # what is cached there was computed under the gates as they were
    return sum(held) if neurons.site == "mlp_act" else max(held)


def _shape(folder: str, passed_over: set[str]) -> dict[str, Any]:
    """What two folders must agree in for one engine to serve both."""
    return {key: value for key, value in load_config(folder).to_dict().items() if key not in passed_over}


def prepared(memory: int, tensor_parallel: int = 1) -> dict[str, Any]:
    """Set what vLLM reads from the environment, where the user has not; the arguments with which one process serves best.

    On a CPU that is this process with all its cores (vLLM would start two more and keep a core free for them), small blocks,
    so that short contexts are shared, and no compiled graph, which takes minutes to make. On a GPU: vLLM's own.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(memory))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    shared = {"tensor_parallel_size": tensor_parallel} if tensor_parallel > 1 else {}
    if device() == "cuda":
        return shared
    return {
        "block_size": 32,
        "distributed_executor_backend": "mp" if shared else "uni",
        "enforce_eager": True,
        **shared,
    }
