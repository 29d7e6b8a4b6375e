"""`stance-vllm`: lm-eval's own `vllm` model with our scoring; every argument of `vllm` is taken.

    lm_eval --model stance-vllm --model_args pretrained=MODEL --tasks arc_easy,hellaswag

Single-token options of one prompt cost one request together, and what longer options share is computed once; the figures
are those of `vllm`, which scores itself where `data_parallel_size` puts engines behind Ray. Two more arguments serve an
intervention: `neurons` (a file that `stance localize` wrote) and `op` (such as `zero`). On a CPU it serves in this process,
uncompiled, unless arguments say otherwise. The start-up hook makes the name known to lm-eval's command line.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from lm_eval.models.vllm_causallms import VLLM

from harness.engines import Tokens
from harness.engines.vllm import carry_out, prepared
from harness.engines.vllm_plugin import EXTENSION, LOAD_FORMAT
from harness.engines.vllm_scoring import choice_scores, continuation_scores
from harness.errors import InputError
from harness.interventions import Op
from harness.lmeval.model import by_context
from harness.models import device
from harness.neurons import Neurons
from harness.progress import bar
from harness.variants import Variant

CPU_MEMORY = 4  # GiB for the key-value cache
_VLLM: Any = VLLM  # lm-eval's registering decorator hides its type


class StanceVLLM(_VLLM):
    """See the module's text; generation is inherited.

    Raises:
        InputError: neurons of another model, one of `neurons` and `op` without the other, an unknown op, or an
            intervention with `data_parallel_size`.
        ProofError: the op changes nothing on a probe prompt.
    """

    def __init__(self, pretrained: str, neurons: str | None = None, op: str | None = None, **given: Any) -> None:
        variant = Variant(pretrained, neurons=Path(neurons) if neurons else None, op=Op.parse(op) if op else None)
        if neurons or op:
            variant.check()
            if int(given.get("data_parallel_size", 1)) > 1:
                raise InputError("An intervention is served by one engine: leave data_parallel_size out.")
            given |= {"load_format": LOAD_FORMAT, "worker_extension_cls": EXTENSION}
            given["additional_config"] = {**given.get("additional_config", {}), LOAD_FORMAT: 1}
        if device() == "cpu" and all(int(given.get(f"{kind}_parallel_size", 1)) == 1 for kind in ("tensor", "data")):
            given = prepared(CPU_MEMORY) | given
        super().__init__(pretrained=pretrained, **given)
        if variant.neurons and variant.op and not variant.op.identity:
            size, chosen = len(self.tokenizer), Neurons.load(variant.neurons)
            carry_out(self.model, self._ask, size, self.max_length, chosen, variant.op)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Requests are (cache key, context tokens, answer tokens). A context too long is cut on the left, as by `vllm`."""
        if self.data_parallel_size > 1:
            return list(super()._loglikelihood_tokens(requests, disable_tqdm))
        longest = self.max_length - 1
        cut = [(_left_cut(context, longest - len(answer)), answer[-longest:]) for _, context, answer in requests]
        single, longer = by_context(cut)
        found: dict[int, tuple[float, bool]] = {}
        asked = [(list(context), [cut[n][1][0] for n in rows]) for context, rows in single.items()]
        if asked:
            for rows, (scores, greedy) in zip(single.values(), choice_scores(self._ask, asked), strict=True):
                found |= {n: (score, cut[n][1][0] == greedy) for n, score in zip(rows, scores, strict=True)}
        block = int(self.model.llm_engine.vllm_config.cache_config.block_size)
        scored = continuation_scores(self._ask, [cut[n] for n in longer], block)
        found.update(zip(longer, scored, strict=True))
        for index, (key, _, _) in enumerate(requests):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, found[index])
        return [found[index] for index in range(len(requests))]

    def _ask(self, prompts: list[Tokens], params: Any, what: str) -> Any:
        inputs: Any = [{"prompt_token_ids": ids} for ids in prompts]
        counted = functools.partial(bar, what=what)
        return self.model.generate(inputs, params, use_tqdm=counted, lora_request=self.lora_request)


def _left_cut(context: Tokens, most: int) -> Tokens:
    return context[max(0, len(context) - max(most, 1)) :]
