"""Every localiser's score of every neuron at `mlp_act`, from the same training questions of one model and its fine-tune.

| name | score of neuron i of layer l | reads |
| --- | --- | --- |
| pnlac | R: root mean square difference of fine-tune and base (arXiv 2508.02360) | questions |
| pnlac_normalized | R in units of the base's standard deviation | questions |
| culnig | P * max a dP/da for the letter of a side's answer (arXiv 2510.08284), on the base | questions, options |
| neuronlens_mean | mean abs(a) at the last token of answers (arXiv 2502.06809), on the base | answers |
| neuronlens_distance | d' between left and right answers at the last token, on the base | answers |
| size | mean abs(a) of the base | questions |
| random | uniform: what a ranking without content gives | nothing |

`culnig` is scored at `gate`, whose neuron i is neuron i of `mlp_act`. Only pnlac reads the fine-tune.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from harness.contrast import Sequence, contrasts
from harness.errors import InputError, ProofError
from harness.measure import prompt_ids
from harness.topics import Item, Topic
from plugins.culnig import score
from plugins.culnig_items import stance_items
from plugins.neuronlens_saliency import Kind, saliency

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Name = Literal["pnlac", "pnlac_normalized", "culnig", "neuronlens_mean", "neuronlens_distance", "size", "random"]
NAMES: tuple[Name, ...] = get_args(Name)
Scores = dict[Name, Float[Tensor, "l m"]]
SITE: Literal["mlp_act"] = "mlp_act"
KINDS: dict[Name, Kind] = {"neuronlens_mean": "mean", "neuronlens_distance": "distance"}


def all_scores(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    tokenizer: Any,
    topics: Seq[Topic],
    side: str,
    chat: bool,
    seed: int = 0,
) -> Scores:
    """Scores [l, m] by localiser, float32 on the CPU, a higher one first; over the topics' training items.

    `side`: whose answer is CULNIG's gold; `seed`: of the random ranking.

    Raises:
        InputError: fewer than two training items.
        ProofError: base and fine-tune do not differ, or CULNIG's scores are all zero.
    """
    items = [item for topic in topics for item in topic.split("train")]
    if len(items) < 2:
        raise InputError(
            f"Came {len(items)} training questions to localise on; expected two or more. Raise `prompts` or give a topic "
            "with more items of split: train."
        )
    asked = [Sequence(prompt_ids(tokenizer, item.question, chat)) for item in items]
    sums = contrasts(base, tuned, {None: asked}, SITE, moments=True)[None]
    if not bool(sums.score.any()):
        raise ProofError("Base and fine-tune have equal activations on every token: is the fine-tune the base itself?")
    left, right = (_answered(tokenizer, items, which, chat) for which in ("left", "right"))
    found: Scores = {"pnlac": sums.score, "pnlac_normalized": sums.normalized, "size": sums.size}
    found["culnig"] = score(base, stance_items(list(topics), side, tokenizer, chat), sites=("gate",)).sites["gate"]
    found |= {name: saliency(base, left, right, SITE, kind) for name, kind in KINDS.items()}
    found["random"] = torch.rand(sums.size.shape, generator=torch.Generator().manual_seed(seed))
    return {name: found[name].float().cpu() for name in NAMES}


def some(topic: Topic, start: int, step: int, limit: int) -> Topic:
    """The topic with every `step`-th of its first `limit` training items, from `start` on."""
    train = topic.split("train")[:limit][start::step]
    return topic.model_copy(update={"items": tuple(train)})


def _answered(tokenizer: Any, items: Seq[Item], side: str, chat: bool) -> list[list[int]]:
    """Token ids of every question with one side's answer."""
    return [
        prompt_ids(tokenizer, item.question, chat)
        + list(tokenizer(getattr(item, side), add_special_tokens=False)["input_ids"])
        for item in items
    ]
