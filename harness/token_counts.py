"""How many tokens a step puts through a model, counted on the very requests that it would ask; no model is loaded.

A measurement's tasks are asked of `Counter`, an engine that answers nothing and adds up lengths. What options share counts
once on vLLM, which computes it once, and every time on Torch. A generated answer counts as long as it may become. Where the
model's tokenizer is not on this machine, a token is taken to be four characters.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from harness.engines import Tokens
from harness.measure import Asked, chosen_documents, prompt_ids, uses_chat

CHARACTERS = 4


class Characters:
    """Stands in for a tokenizer: four characters are a token, and there is no chat template."""

    chat_template = None
    bos_token = None
    bos_token_id = None
    eos_token_id = 0
    name_or_path = "characters"

    def __call__(self, text: str, **_: Any) -> dict[str, Tokens]:
        parts = (text[n : n + CHARACTERS] for n in range(0, len(text), CHARACTERS))
        return {"input_ids": [zlib.crc32(part.encode()) for part in parts]}


@dataclass
class Counter:
    """An engine that counts. `shares`: contexts of several continuations count once, as vLLM computes them."""

    tokenizer: Any
    shares: bool
    tokens: int = 0
    name: str = "counter"
    max_length: int = 2**31

    def score_continuations(self, requests: list[tuple[Tokens, Tokens]]) -> list[tuple[float, bool]]:
        contexts = [tuple(context) for context, _ in requests]
        self.tokens += sum(map(len, dict.fromkeys(contexts) if self.shares else contexts))
        self.tokens += sum(len(continuation) for _, continuation in requests)
        return [(0.0, False)] * len(requests)

    def score_choices(self, requests: list[tuple[Tokens, Tokens]]) -> list[list[float]]:
        self.tokens += sum(len(context) for context, _ in requests)
        return [[0.0] * len(options) for _, options in requests]

    def generate(
        self, prompts: list[Tokens], max_tokens: int, stop: list[str], temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        self.tokens += sum(len(prompt) + max_tokens for prompt in prompts)
        return [""] * len(prompts)

    def close(self) -> None: ...


class TokenCounts:
    """Token counts under one tokenizer (None: by characters) and one chat setting.

    Raises:
        InputError: a chat template is demanded and the tokenizer has none.
    """

    def __init__(self, tokenizer: Any | None, chat: str) -> None:
        self.exact = tokenizer is not None
        self.tokenizer: Any = tokenizer if tokenizer is not None else Characters()
        self.chat = uses_chat(tokenizer, chat) if tokenizer is not None else False
        self.text = lru_cache(maxsize=None)(self._text)
        self.prompt = lru_cache(maxsize=None)(self._prompt)
        self._asked: list[tuple[Asked, bool, tuple[int, int]]] = []

    def _text(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prompt(self, question: str) -> int:
        return len(prompt_ids(self.tokenizer, question, self.chat))

    def pairs(self, pairs: list[dict[str, str]]) -> int:
        """Prompts with their completions, as they are trained on."""
        return sum(self.prompt(pair["prompt"]) + self.text(pair["completion"]) for pair in pairs)

    def asked(self, asked: Asked, engine: str) -> tuple[int, int]:
        """Documents and tokens of a measurement."""
        asked, shares = replace(asked, chat=self.chat, order_seed=None), engine == "vllm"
        for known, shared, counted in self._asked:
            if (known, shared) == (asked, shares):
                return counted
        self._asked.append((asked, shares, _counted(asked, Counter(self.tokenizer, shares))))
        return self._asked[-1][2]


def _counted(asked: Asked, counter: Counter) -> tuple[int, int]:
    """lm-eval builds the requests as it does for a measurement; nothing scores the answers, so no judge is needed."""
    from harness.lmeval.model import EngineLM
    from harness.lmeval.roots import task_manager

    manager = task_manager(list(asked.folders), axes=asked.axes)
    tasks = manager.load(manager.match_tasks(list(asked.tasks)))["tasks"]
    chosen = chosen_documents(tasks, asked.limit)
    lm = EngineLM(counter)  # under this name, as tasks find the model that asks them
    requests: dict[str, list[Any]] = defaultdict(list)
    documents = 0
    for name, task in tasks.items():
        task.build_all_requests(
            samples=None if chosen is None else chosen[name],
            apply_chat_template=asked.chat,
            chat_template=lm.apply_chat_template if asked.chat else None,
            tokenizer_name=lm.tokenizer_name,
        )
        documents += len({instance.doc_id for instance in task.instances})
        for instance in task.instances:
            requests[instance.request_type].append(instance)
    for kind, some in requests.items():
        getattr(lm, kind)(some)
    return documents, counter.tokens
