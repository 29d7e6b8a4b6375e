"""Engines: what asks a model. One small protocol, a vLLM and a Torch implementation, the same numbers."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

from harness.errors import InputError, choices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.interventions import Op
    from harness.neurons import Neurons
    from harness.ranges import RangeOp

Tokens = list[int]
ENGINES = ("vllm", "torch")
ADAPTERS = ("merge", "request")


@dataclass(frozen=True)
class Settings:
    """How an engine is started.

    Attributes:
        dtype: `bfloat16`, `float32`, or `auto`: the checkpoint's, but `float32` on an x86 CPU without bfloat16 units, which
            takes several times as long over bfloat16.
        max_length: tokens per request, prompt and answer together.
        memory: GiB for vLLM's key-value cache on a CPU; share of the GPU's memory is vLLM's default there.
        batch_tokens: positions per padded batch on the Torch engine.
        adapters: `merge` (an adapter becomes weights that are swapped in) or `request` (vLLM computes it beside the base,
            which then takes no interventions).
        tensor_parallel: GPUs (or processes, on a CPU) that one vLLM engine shares a model's layers out over.
    """

    dtype: str = "auto"
    max_length: int = 1024
    memory: int = 1
    batch_tokens: int = 4096
    adapters: str = "merge"
    seed: int = 0
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        if self.dtype == "auto" and slow_bfloat16():
            object.__setattr__(self, "dtype", "float32")


@cache
def slow_bfloat16() -> bool:
    """Whether models run here on an x86 CPU that has neither AVX-512 BF16 nor AMX."""
    import torch

    known = platform.machine().lower() in ("x86_64", "amd64") and not torch.cuda.is_available()
    return known and not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class DeadEngineError(InputError):
    """An engine stopped in the middle of its work; what it answered before is kept, and it cannot be used again."""

    def __init__(self, name: str, error: BaseException) -> None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        super().__init__(
            f"The {name} engine died ({reason}). The answers it gave are kept: the same command goes on from them. Where it "
            "dies again, give --engine torch or a lower --max-length; STANCE_VERBOSE=1 shows what it prints."
        )


class Engine(Protocol):
    """Scores and generates on token ids. Every list comes back in the order it was given."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def score_continuations(self, requests: list[tuple[Tokens, Tokens]]) -> list[tuple[float, bool]]:
        """(context, continuation) -> (sum of log-probabilities in nats, whether greedy decoding would give it)."""
        ...

    def score_choices(self, requests: list[tuple[Tokens, Tokens]]) -> list[list[float]]:
        """(context, single-token choices) -> log-probability of each choice as the next token, in nats."""
        ...

    def generate(
        self, prompts: list[Tokens], max_tokens: int, stop: list[str], temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """Continuation of each prompt, without the stop string: greedy, or sampled above temperature 0.

        A sampled answer depends on the seed plus the prompt's place in the list, not on its neighbours.
        """
        ...

    def close(self) -> None:
        """Give the memory back; the engine cannot be used afterwards."""
        ...


class Serving(Engine, Protocol):
    """An engine whose model can be changed while it runs.

    Attributes:
        dead: whether it has raised `DeadEngineError`.
    """

    dead: bool

    def intervene(self, neurons: Neurons | None, op: Op | RangeOp) -> float:
        """Carry out an op on the neurons from now on, in place of what was carried out before; None ends it.

        A `RangeOp` has bounds of each neuron's own.

        Returns:
            the largest change of an activation on a probe prompt, where the engine can say it (else NaN).

        Raises:
            InputError: neurons of another shape, or a model that takes no interventions.
            ProofError: the op changes nothing on the probe prompt.
        """
        ...

    def swap(self, folder: str) -> None:
        """Serve the weights of another folder of the same architecture from now on, without any intervention.

        Raises:
            InputError: a model of another shape.
        """
        ...

    def adapt(self, adapter: str | None) -> float:
        """Answer with a LoRA adapter (its folder) beside the served weights from now on; None ends it.

        Returns:
            the largest change of a log-probability on a probe prompt.

        Raises:
            InputError: an engine that was not started with `adapters="request"`.
            ProofError: the adapter changes nothing on the probe prompt.
        """
        ...


def start(name: str, folder: str, settings: Settings | None = None) -> Serving:
    """Start an engine on a local model folder.

    Raises:
        InputError: unknown engine, or vLLM is not installed.
    """
    settings = settings or Settings()
    if settings.adapters not in ADAPTERS:
        raise InputError(f"adapters is {settings.adapters!r}; choose from {choices(ADAPTERS)}.")
    if name == "torch":
        if settings.adapters != "merge":
            raise InputError("The Torch engine serves adapters merged; adapters=request needs vLLM.")
        if settings.tensor_parallel > 1:
            raise InputError(
                f"tensor_parallel is {settings.tensor_parallel}; the Torch engine holds a model whole. Leave it out, or "
                "take vLLM."
            )
        from harness.engines.torch import TorchEngine

        return TorchEngine.from_folder(folder, settings)
    if name == "vllm":
        from harness.engines.vllm import VLLMEngine

        return VLLMEngine(folder, settings)
    raise InputError(f"There is no engine {name!r}; engines: {choices(ENGINES)}.")


def longest(folder: str, settings: Settings) -> int:
    """Tokens per request that an engine takes for this model: the settings' and the model's own limit."""
    from harness.models import load_config

    limit = getattr(load_config(folder).get_text_config(), "max_position_embeddings", settings.max_length)
    return min(settings.max_length, int(limit))


def check_length(context: Tokens, more: int, limit: int) -> None:
    """Refuse what would have to be truncated.

    Raises:
        InputError: context and continuation are longer than the engine's limit, or the context is empty.
    """
    if not context:
        raise InputError("A request has an empty context; at least a beginning-of-text token must come first.")
    if len(context) + more > limit:
        raise InputError(
            f"A request has {len(context)} context and {more} further tokens; the engine takes {limit}. "
            "Nothing is truncated: raise --max-length."
        )


def probe_prompt(vocabulary: int, longest: int) -> Tokens:
    """Fixed token ids spread over the vocabulary: what an intervention proves itself on."""
    return [(7919 * n + 11) % vocabulary for n in range(min(48, longest - 1))]
