"""Steps of the verbs measure, tune and localise as planned steps: what a study's `plan` is written with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from harness.anchor import Anchored
from harness.costs import BYTES_PER_DOCUMENT, OWN_FILES, ModelCost
from harness.errors import InputError
from harness.margin import HeldMargins
from harness.measure import Asked
from harness.mitigation import Training
from harness.models import load_tokenizer, resolve
from harness.neurons import Neurons
from harness.placed import title
from harness.plan import BACKWARD, FORWARD, FULL, LORA, Pass, PlannedStep, is_elsewhere, without_download
from harness.runs import digest
from harness.token_counts import TokenCounts
from harness.topics import Item, Topic

LETTERED = 10  # tokens of two letters, their line breaks and `Answer:`


class Planner:
    """Counts and costs of one model under one chat setting.

    Raises:
        InputError: no such model, or a chat template is demanded where there is none.
    """

    def __init__(self, model: str, chat: str = "auto") -> None:
        self.model, self.folder, self.chat = model, _here(model), chat
        self.counts = TokenCounts(None if self.folder is None else load_tokenizer(self.folder), chat)
        self.cost = ModelCost(model, self.folder)

    def with_chat(self, chat: str) -> Planner:
        """The same model under another chat setting."""
        return self if chat == self.chat else Planner(self.model, chat)

    def dtype(self, setting: str) -> str:
        """`auto` is the checkpoint's."""
        return self.cost.dtype if setting == "auto" else setting

    def measured(
        self, name: str, folder: str, asked: Asked, engine: str, dtype: str, *, models: int = 1, merged: bool = False
    ) -> PlannedStep:
        """A measurement. `models`: how many read each token; `merged`: an adapter becomes a folder of weights first."""
        documents, tokens = self.counts.asked(asked, engine)
        spec = {
            **{key: getattr(asked, key) for key in ("tasks", "limit", "judge", "order_seed", "axes")},
            **{"chat": self.chat, "engine": engine, "dtype": dtype},
        }
        return PlannedStep(
            name,
            "measure",
            folder,
            documents,
            (Pass(tokens, FORWARD * models),),
            self.dtype(dtype),
            documents * BYTES_PER_DOCUMENT + OWN_FILES,
            self.cost.weights if merged else 0,
            spec,
        )

    def tuned(self, name: str, folder: str, training: Training, seed: int) -> PlannedStep:
        """A fine-tune, with what an anchor reads beside it."""
        recipe, count = training.recipe, len(training.pairs)
        flops = LORA if recipe.mode == "lora" else FULL
        steps = math.ceil(math.ceil(count / recipe.batch_size) * recipe.epochs)
        passes = [Pass(recipe.epochs * self.counts.pairs(training.pairs), flops)]
        if training.anchored is not None:
            passes += self._anchor(training.anchored, steps, flops)
        spec = {
            "model": title(self.model),
            "data": digest(training.pairs),
            "examples": count,
            "recipe": recipe.model_dump(),
        }
        writes = self.cost.adapter(recipe) if recipe.mode == "lora" else self.cost.weights
        return PlannedStep(
            name, "tune", folder, count, tuple(passes), recipe.precision, writes, 0, {**spec, "seed": seed}
        )

    def localized(
        self,
        name: str,
        folder: str,
        topics: Sequence[Topic],
        prompts: int | None,
        precision: str = "float32",
        side: str | None = None,
        **spec: Any,
    ) -> PlannedStep:
        """PNLAC: both models read the training questions, with one side's answers where `side` is given."""
        items = [item for topic in topics for item in topic.split("train")[:prompts]]
        tokens = sum(self.counts.prompt(i.question) for i in items)
        tokens += sum(self.counts.text(getattr(i, side)) for i in items) if side else 0
        writes = self.cost.neurons(len(topics) + 2)
        said = {"precision": precision, "chat": self.chat, **spec}
        return PlannedStep(
            name, "localize", folder, len(items), (Pass(tokens, 2 * FORWARD),), precision, writes, 0, said
        )

    def gradients(self, name: str, folder: str, items: Sequence[Item]) -> PlannedStep:
        """CULNIG's score of the base's neurons on both orders of every item's answers."""
        writes = self.cost.neurons(1)
        passes = (Pass(self.gradient_tokens(items), BACKWARD),)
        return PlannedStep(name, "gradients", folder, 2 * len(items), passes, writes=writes, spec={"chat": self.chat})

    def gradient_tokens(self, items: Sequence[Item]) -> int:
        """Tokens of items asked as a choice between their two answers, in both orders."""
        return sum(
            2 * (self.counts.prompt(i.question) + self.counts.text(i.left) + self.counts.text(i.right) + LETTERED)
            for i in items
        )

    def _anchor(self, anchored: Anchored | HeldMargins, steps: int, flops: float) -> list[Pass]:
        """Beside every step the model learns on a batch more; the base reads it too, or read all of it before."""
        size = anchored.settings.batch_size
        if isinstance(anchored, HeldMargins):
            pair = [2 * self.counts.prompt(q) + self.counts.text(a) + self.counts.text(b) for q, a, b in anchored.pairs]
            return [Pass(steps * size * sum(pair) / len(pair), flops), Pass(2 * sum(pair))]
        prompts = sum(map(self.counts.prompt, anchored.prompts))
        whole = prompts + len(anchored.prompts) * anchored.settings.answers
        return [Pass(steps * size * whole / len(anchored.prompts), flops + FORWARD), Pass(whole)]


def small(name: str, kind: str, folder: str, passes: Sequence[Pass], documents: int, dtype: str) -> PlannedStep:
    """A step that writes tables alone."""
    return PlannedStep(name, kind, folder, documents, tuple(passes), dtype, documents * BYTES_PER_DOCUMENT + OWN_FILES)


def some_neurons() -> Neurons:
    """Stands in for neurons that are yet to be found, so that a mitigation can say what it would train on."""
    scores = torch.arange(4000.0).view(4, 1000)
    return Neurons(scores % 2 == 0, "mlp_act", "planned", scores)


def numbered(steps: Iterable[PlannedStep]) -> list[PlannedStep]:
    """Folders under the numbers that a study gives its steps."""
    return [replace(step, folder=f"{n:02d}-{step.folder}") for n, step in enumerate(steps, 1)]


def _here(model: str) -> str | None:
    """The model's folder, or None for one of the hub that is not on this machine."""
    try:
        with without_download():
            return resolve(model)
    except InputError as error:
        if is_elsewhere(error):
            return None
        raise
