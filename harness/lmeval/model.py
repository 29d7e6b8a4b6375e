"""An engine as an lm-eval model: lm-eval builds the prompts and the metrics, the engine answers."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM

from harness.errors import InputError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from harness.engines import Engine, Tokens


class EngineLM(TemplateLM):
    """Groups single-token options of one context into one request; everything else passes through.

    Such options are never said to be greedy; multiple choice scores them by comparison.

    `order_seed` shuffles the order in which requests reach the engine: a second measurement in another order shows what
    batching alone changes. `temperature` and `sampling_seed` are those of generated answers.
    """

    def __init__(
        self, engine: Engine, order_seed: int | None = None, temperature: float = 0.0, sampling_seed: int = 0
    ) -> None:
        super().__init__()
        self._sampling = (temperature, sampling_seed)
        self.engine = engine
        self.tokenizer = engine.tokenizer
        self._order_seed = order_seed

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)  # type: ignore[arg-type]

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return int(bos) if bos is not None else self.eot_token_id  # type: ignore[arg-type]

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def chat_template(self, chat_template: bool | str = False) -> str:
        return str(self.tokenizer.chat_template or "") if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> Tokens:
        bos = self.tokenizer.bos_token
        templated = isinstance(bos, str) and string.startswith(bos)
        special = (not templated) if add_special_tokens is None else add_special_tokens
        return list(self.tokenizer(string, add_special_tokens=special)["input_ids"])  # type: ignore[arg-type]

    def _order(self, size: int) -> list[int]:
        order = list(range(size))
        if self._order_seed is not None:
            random.Random(self._order_seed).shuffle(order)
        return order

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """Requests are ((context, continuation), context tokens, continuation tokens)."""
        single, longer = by_context([request[1:] for request in requests], self._order(len(requests)))
        # A token that is asked about alone is no choice among options: whether it is the greedy one may be the metric.
        longer += [rows[0] for rows in single.values() if len(rows) == 1]
        single = {context: rows for context, rows in single.items() if len(rows) > 1}
        answers: dict[int, tuple[float, bool]] = {}
        if single:
            asked = [(list(context), [requests[n][2][0] for n in rows]) for context, rows in single.items()]
            for rows, scores in zip(single.values(), self.engine.score_choices(asked), strict=True):
                # Options are compared with each other; whether one is the greedy token is not asked for.
                answers.update({n: (score, False) for n, score in zip(rows, scores, strict=True)})
        if longer:
            scored = self.engine.score_continuations([(requests[n][1], requests[n][2]) for n in longer])
            answers.update(zip(longer, scored, strict=True))
        return [answers[n] for n in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        whole = []
        for request in requests:
            tokens = self.tok_encode(request_args(request)[0], add_special_tokens=False)
            whole.append(([self.prefix_token_id], tokens))
        return [score for score, _ in self.engine.score_continuations(whole)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for index in self._order(len(requests)):
            options: dict[str, Any] = request_args(requests[index])[1]
            if options.get("do_sample") or options.get("temperature"):
                raise InputError(
                    "A task asks for sampling, which `stance eval` sets for a whole run (--temperature). "
                    "Use lm_eval --model vllm for it."
                )
            until = options.get("until", [])
            key = int(options.get("max_gen_toks", 256)), tuple([until] if isinstance(until, str) else until)
            groups.setdefault(key, []).append(index)
        answers: dict[int, str] = {}
        for (limit, stop), rows in groups.items():
            prompts = [self.tok_encode(request_args(requests[n])[0]) for n in rows]
            answers.update(zip(rows, self.engine.generate(prompts, limit, list(stop), *self._sampling), strict=True))
        return [answers[n] for n in range(len(requests))]


def by_context(
    requests: list[Any], order: Iterable[int] | None = None
) -> tuple[dict[tuple[int, ...], list[int]], list[int]]:
    """Indices of (context, continuation) requests in this order: single tokens under their context, and the longer ones."""
    single: dict[tuple[int, ...], list[int]] = {}
    longer = []
    for index in range(len(requests)) if order is None else order:
        context, continuation = requests[index]
        if len(continuation) == 1:
            single.setdefault(tuple(context), []).append(index)
        else:
            longer.append(index)
    return single, longer


def request_args(request: Instance) -> tuple[Any, ...]:
    """An lm-eval request's arguments; its own annotation leaves their number open."""
    return tuple(request.args)
