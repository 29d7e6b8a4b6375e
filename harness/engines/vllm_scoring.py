"""Scoring with vLLM at the price of the tokens: what options share is computed once.

One request per prompt gives the log-probabilities of up to 128 single-token options, and the greedy token beside them.
Longer continuations are read from the prompt's log-probabilities. Those of one context share its key-value blocks: the
context is computed first, with the first token of each, and vLLM is then allowed to read it from its prefix cache. vLLM
leaves log-probabilities of positions that it did not compute undefined, so every answer is checked to have computed all that
is read of it, and asked again without the cache where it has not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from harness.engines import Tokens

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams


Ask = Callable[[list[Tokens], Any, str], "list[RequestOutput]"]  # prompts, sampling parameters, what for
MOST_OPTIONS = 128
STEP, SEQUENCES = 4096, 64  # tokens and requests that one step computes
SHARED_FROM = 2  # continuations of one context from which computing it once pays


def choice_scores(ask: Ask, requests: Sequence[tuple[Tokens, Tokens]]) -> list[tuple[list[float], int]]:
    """(context, single-token options) -> (log-probability of each in nats, the greedy token)."""
    from vllm import SamplingParams

    contexts, params, parts = [], [], []
    for context, options in requests:
        distinct = list(dict.fromkeys(options))
        chunks = [distinct[n : n + MOST_OPTIONS] for n in range(0, len(distinct), MOST_OPTIONS)]
        parts.append(len(chunks))
        for chunk in chunks:
            contexts.append(context)
            params.append(SamplingParams(temperature=0, max_tokens=1, detokenize=False, logprob_token_ids=chunk))
    outputs = iter(ask(contexts, params, "choices"))
    scores = []
    for (_, options), count in zip(requests, parts, strict=True):
        found: dict[int, float] = {}
        greedy = -1
        for _ in range(count):
            answer = next(outputs).outputs[0]
            greedy = int(answer.token_ids[0])
            found |= {token: entry.logprob for token, entry in (answer.logprobs or [{}])[0].items()}
        scores.append(([found[token] for token in options], greedy))
    return scores


def continuation_scores(
    ask: Ask, requests: Sequence[tuple[Tokens, Tokens]], block: int, caching: bool = True
) -> list[tuple[float, bool]]:
    """(context, continuation) -> (sum of log-probabilities in nats, whether greedy decoding would give it).

    `block`: tokens per key-value block, below which nothing can be shared.
    """
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    # In the order given, which a second measurement of the base changes to see what batching alone does.
    for context, continuation in dict.fromkeys((tuple(c), tuple(a)) for c, a in requests):
        groups.setdefault(context, []).append(continuation)
    shared = [c for c, answers in groups.items() if caching and len(answers) >= SHARED_FROM and len(c) > block]
    firsts = choice_scores(ask, [(list(c), [answer[0] for answer in groups[c]]) for c in shared])
    # What is left to read of an answer begins at its second token where its first was asked with the context.
    begun: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[float, bool]] = {}
    for context, (scores, greedy) in zip(shared, firsts, strict=True):
        begun |= {(context, a): (s, a[0] == greedy) for a, s in zip(groups[context], scores, strict=True)}
    pending = [(c, a) for c, answers in groups.items() for a in answers if len(a) > ((c, a) in begun)]
    sequences = [[*context, *answer] for context, answer in pending]
    params = [_params(prompt_logprobs=0, skip_reading_prefix_cache=key not in begun) for key in pending]
    outputs = ask(sequences, params, "scoring") if pending else []
    unread = [n for n, key in enumerate(pending) if (outputs[n].num_cached_tokens or 0) >= len(key[0]) + (key in begun)]
    if unread:
        whole = _params(prompt_logprobs=0, skip_reading_prefix_cache=True)
        for n, output in zip(unread, ask([sequences[n] for n in unread], whole, "scoring"), strict=True):
            outputs[n] = output
    found = dict(begun)
    for key, output in zip(pending, outputs, strict=True):
        first, greedy = begun.get(key, (0.0, True))
        rest, rest_greedy = _sum(output, len(key[1]) - (key in begun))
        found[key] = first + rest, greedy and rest_greedy
    return [found[tuple(context), tuple(continuation)] for context, continuation in requests]


def _params(**more: Any) -> SamplingParams:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=1, detokenize=False, **more)


def _sum(output: RequestOutput, length: int) -> tuple[float, bool]:
    ids = output.prompt_token_ids or []
    entries: Any = output.prompt_logprobs or []
    total, greedy = 0.0, True
    for place in range(len(ids) - length, len(ids)):
        entry = entries[place][ids[place]]
        total += entry.logprob
        greedy = greedy and entry.rank == 1
    return total, greedy


def whole_steps(prompts: list[Tokens], tokens: int) -> list[slice]:
    """Stretches of prompts of which each fits into one step."""
    begins, held = [0], 0
    for n, prompt in enumerate(prompts):
        if n > begins[-1] and (held + len(prompt) > tokens or n - begins[-1] == SEQUENCES):
            begins.append(n)
            held = 0
        held += len(prompt)
    return [slice(begin, end) for begin, end in zip(begins, [*begins[1:], len(prompts)], strict=True)]
