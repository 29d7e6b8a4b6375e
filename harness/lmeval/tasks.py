"""Topics as lm-eval tasks: one group per topic, one task per format, all under `political_stance`.

| format | asks | lm-eval metrics (stance: -1 left .. +1 right) |
| --- | --- | --- |
| pairs | which answer is likelier, left or right | nats (per token, right minus left), nats_per_byte, stance (share) |
| statements | agree or disagree, both option orders | stance (expected, keyed), agree (share of agreement) |
| open | a free answer, read by a judge | stance, left, right, neutral, refused, empty |

lm-eval builds these from a topic's YAML through the `class:` key, which may return a whole group.
"""

from __future__ import annotations

import abc
import math
import sys
from pathlib import Path
from typing import Any, ClassVar

import datasets
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import AggMetricConfig

from harness import judges, scoring
from harness.errors import InputError
from harness.topics import GROUP, Statement, Topic, find_topics, load_topic

VERSION = 1
OPEN_MAX_TOKENS = 48


def mean(values: list[float]) -> float:
    """Mean of the values that are numbers; 0 when there is none (a model that gives no answer has no lean)."""
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else 0.0


def absolute_mean(values: list[float]) -> float:
    """|mean|: signed stances of several topics cancel in a group's mean, these do not."""
    return abs(mean(values))


def _metrics(*names: str, aggregation: Any = "mean") -> list[dict[str, Any]]:
    return [
        {
            "metric": name,
            "aggregation": absolute_mean if name == "abs_stance" else aggregation,
            "higher_is_better": None,
        }
        for name in names
    ]


class StanceTask(ConfigurableTask):
    """One format of one topic. Subclasses give the documents and turn a model's answers into numbers."""

    FORMAT: ClassVar[str]
    SETTINGS: ClassVar[dict[str, Any]]

    def __init__(self, config: dict[str, Any]) -> None:
        metadata = {"version": VERSION, "num_fewshot": 0, **config["metadata"]}
        self.topic: Topic = load_topic(Path(metadata["topic_file"]))
        self.judge_name: str = metadata.get("judge", "embedded")
        super().__init__(
            config={
                "task": config["task"],
                "test_split": "test",
                "doc_to_text": "{{prompt}}",
                "process_results": self.score,
                "metadata": metadata,
                **self.SETTINGS,
            }
        )

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.dataset = datasets.DatasetDict({"test": datasets.Dataset.from_list(self.documents())})

    def doc_to_text(self, doc: dict[str, Any], doc_to_text: Any = None) -> str:
        return doc["prompt"]

    @abc.abstractmethod
    def documents(self) -> list[dict[str, Any]]:
        """What is asked: at least `item`, `variant`, `sub_issue` and `prompt` of every document."""

    @abc.abstractmethod
    def score(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        """The model's answers to one document -> this format's metrics."""


class Pairs(StanceTask):
    """Left and right answer to one question, by their log-probability (nats) per token."""

    FORMAT = "pairs"
    SETTINGS: ClassVar[dict[str, Any]] = {
        "output_type": "multiple_choice",
        "target_delimiter": "\n",
        "doc_to_choice": ["left", "right"],
        "doc_to_target": 0,
        "metric_list": _metrics("nats", "nats_per_byte", "stance", "abs_stance"),
    }

    def __init__(self, config: dict[str, Any]) -> None:
        self._tokens: dict[str, list[int]] = {}
        super().__init__(config)

    def documents(self) -> list[dict[str, Any]]:
        return [
            {"item": i.id, "variant": "", "sub_issue": i.sub_issue, "prompt": i.question, "choices": [i.left, i.right]}
            for i in self.topic.split("measure")
        ]

    def doc_to_choice(self, doc: dict[str, Any], doc_to_choice: Any = None) -> list[str]:
        return doc["choices"]

    def construct_requests(self, doc: dict[str, Any], ctx: str | list[str], **kwargs: Any) -> list[Instance]:
        requests = super().construct_requests(doc, ctx, **kwargs)
        assert isinstance(requests, list)
        model = _calling_model()
        self._tokens[doc["item"]] = [len(model._encode_pair(*request.arguments)[1]) for request in requests]
        return requests

    def score(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        left, right = (float(logprob) for logprob, _ in results)
        size = [len(text.encode()) for text in doc["choices"]]
        nats = scoring.pair_nats(left, right, *self._tokens[doc["item"]])
        stance = scoring.pair_choice(nats)
        per_byte = scoring.pair_nats(left, right, *size)
        return {"nats": nats, "nats_per_byte": per_byte, "stance": stance, "abs_stance": stance}


class Statements(StanceTask):
    """Agree or disagree with a keyed claim, asked once in each option order."""

    FORMAT = "statements"
    SETTINGS: ClassVar[dict[str, Any]] = {
        "output_type": "multiple_choice",
        "doc_to_choice": list(scoring.LABELS),
        "doc_to_target": 0,
        "metric_list": _metrics("stance", "abs_stance", "agree"),
    }

    def documents(self) -> list[dict[str, Any]]:
        return [
            {
                "item": s.id,
                "variant": f"{order[0]}-first",
                "sub_issue": s.sub_issue,
                "key": s.agree,
                "order": list(order),
                "prompt": scoring.statement_prompt(s.text, order),
            }
            for s in _alternating(self.topic.statements)
            for order in scoring.ORDERS
        ]

    def score(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        agree = scoring.agreement([float(logprob) for logprob, _ in results], doc["order"])
        stance = scoring.statement_stance(agree, doc["key"])
        return {"stance": stance, "abs_stance": stance, "agree": agree}


class Open(StanceTask):
    """A free greedy answer, labelled by the judge named in the task's metadata."""

    FORMAT = "open"
    SETTINGS: ClassVar[dict[str, Any]] = {
        "output_type": "generate_until",
        "doc_to_target": "",
        "generation_kwargs": {"until": ["\n\n\n"], "max_gen_toks": OPEN_MAX_TOKENS, "do_sample": False},
        "metric_list": _metrics("stance", "abs_stance", *judges.LABELS, aggregation=mean),
    }

    def documents(self) -> list[dict[str, Any]]:
        return [
            {"item": i.id, "variant": "", "sub_issue": i.sub_issue, "prompt": i.question}
            for i in self.topic.split("measure")
        ]

    def construct_requests(self, doc: dict[str, Any], ctx: str | list[str], **kwargs: Any) -> list[Instance] | Instance:
        assert isinstance(ctx, str)
        # Without a chat template nothing ends the question's turn; the pairs format puts the same break there.
        return super().construct_requests(doc, ctx if kwargs.get("apply_chat_template") else ctx + "\n", **kwargs)

    def score(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        judge = judges.get(self.judge_name, (self.topic,))
        label = judge.label([doc["prompt"]], [str(results[0])])[0]
        stance = scoring.judged_stance(label)
        rates = {name: float(name == label) for name in judges.LABELS}
        return {"stance": stance, "abs_stance": stance, **rates}


def _alternating(statements: tuple[Statement, ...]) -> list[Statement]:
    """Left- and right-keyed by turns, so that any limit divisible by four keeps keys and orders balanced."""
    keyed = [[s for s in statements if s.agree == side] for side in ("left", "right")]
    return [statement for pair in zip(*keyed, strict=True) for statement in pair]


FORMAT_TASKS: dict[str, type[StanceTask]] = {cls.FORMAT: cls for cls in (Pairs, Statements, Open)}


def _group(name: str, children: list[Any], alias: str | None = None) -> Group:
    metrics = [AggMetricConfig(metric=m, aggregation="mean", weight_by_size=False) for m in ("stance", "abs_stance")]
    group = Group(name=name, alias=alias, aggregate_metric_list=metrics, metadata={"version": VERSION})
    for child in children:
        group.add(child)
    return group


def topic_group(topic: Topic, metadata: dict[str, Any] | None = None) -> Group:
    """The lm-eval group of one topic: a task for every format the topic has material for."""
    tasks = []
    for kind, cls in FORMAT_TASKS.items():
        if kind == "statements" and not topic.statements:
            continue
        config = {"task": f"{topic.task}_{kind}", "metadata": {**(metadata or {}), "topic_file": str(topic.path)}}
        tasks.append(cls(config=config))
    return _group(topic.task, tasks, alias=topic.title)


class TopicGroup:
    """What a topic file's `class:` key names. Building it gives the group of that file's topic."""

    def __new__(cls, config: dict[str, Any] | None = None) -> Any:
        metadata = (config or {}).get("metadata", {})
        source = Path(metadata.get("config_source", ""))
        return topic_group(load_topic(source), _own(metadata))

    def __init__(self, config: dict[str, Any] | None = None) -> None: ...


class AllTopics:
    """The group `political_stance`: every topic of every folder lm-eval was shown; no file can shrink it."""

    def __new__(cls, config: dict[str, Any] | None = None) -> Any:
        from harness.lmeval.roots import all_roots

        metadata = _own((config or {}).get("metadata", {}))
        return _group(GROUP, [topic_group(topic, metadata) for topic in find_topics(all_roots()).values()])

    def __init__(self, config: dict[str, Any] | None = None) -> None: ...


def _own(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: metadata[key] for key in ("judge",) if key in metadata}


def _calling_model() -> TemplateLM:
    """The model whose evaluation is building these requests.

    Per-token scores need the model's own tokenisation, and lm-eval (0.4.13) hands tasks neither model nor tokenizer;
    its `evaluate` has the model as the local `lm`, two or three frames up.
    """
    frame = sys._getframe(1)
    while frame is not None:
        model = frame.f_locals.get("lm")
        if isinstance(model, TemplateLM):
            return model
        frame = frame.f_back
    raise InputError(
        "The pairs format scores per token and needs a model with a tokenizer; "
        "use --model hf, --model vllm or `stance eval`, or ask for the statements or open tasks."
    )
