"""Topics as lm-eval tasks: one group per topic, one task per format, all under `political_stance`.

| format | asks | lm-eval metrics (stance: -1 left .. +1 right) |
| --- | --- | --- |
| pairs | which answer is likelier, left or right | nats (per token, right minus left), nats_per_byte, stance (share) |
| statements | agree or disagree, in every variant | stance (expected), stance_top (likeliest option), agree, mass, first |
| open | a free answer, read by a judge | stance, left, right, neutral, refused, off_topic, empty, unparsed |
| choices | multiple choice with a stance per option | stance, stance_top, mass, first, declined |

`harness/probes.py` gives the documents, one per variant. lm-eval builds the tasks from a topic's YAML through the `class:`
key, which may return a whole group. `--metadata '{"judge": ..., "axes": {...}}'` changes the judge and the axes.
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
from harness.probes import ROWS
from harness.topics import GROUP, Topic, find_topics, load_topic

VERSION = 2
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
        self.topic: Topic = load_topic(Path(metadata["topic_file"])).varied(metadata.get("axes") or {})
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
        self.dataset = datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS[self.FORMAT](self.topic))})

    def doc_to_text(self, doc: dict[str, Any], doc_to_text: Any = None) -> str:
        return doc["prompt"]

    def doc_to_choice(self, doc: dict[str, Any], doc_to_choice: Any = None) -> list[str]:
        return doc.get("labels") or doc["choices"]

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

    def construct_requests(self, doc: dict[str, Any], ctx: str | list[str], **kwargs: Any) -> list[Instance]:
        requests = super().construct_requests(doc, ctx, **kwargs)
        assert isinstance(requests, list)
        model = calling_model()
        self._tokens[doc["item"]] = [len(model._encode_pair(*request.arguments)[1]) for request in requests]
        return requests

    def score(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        left, right = (float(logprob) for logprob, _ in results)
        size = [len(text.encode()) for text in doc["choices"]]
        nats = scoring.pair_nats(left, right, *self._tokens[doc["item"]])
        stance = scoring.pair_choice(nats)
        per_byte = scoring.pair_nats(left, right, *size)
        return {"nats": nats, "nats_per_byte": per_byte, "stance": stance, "abs_stance": stance}


class Choices(StanceTask):
    """A multiple-choice question with a stance for every option; statements are one with agreement as options."""

    FORMAT = "choices"
    SETTINGS: ClassVar[dict[str, Any]] = {
        "output_type": "multiple_choice",
        "doc_to_choice": ["A", "B"],
        "doc_to_target": 0,
        "metric_list": _metrics("stance", "stance_top", "abs_stance", "mass", "first", "declined", aggregation=mean),
    }

    def score(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        answer = scoring.chosen([float(logprob) for logprob, _ in results], doc["values"])
        metrics = {"stance": answer.expected, "stance_top": answer.top, "abs_stance": answer.expected}
        return {**metrics, "mass": answer.mass, "first": answer.first, "declined": answer.declined}


class Statements(Choices):
    """Agree or disagree with a keyed claim, in every variant the topic's axes declare."""

    FORMAT = "statements"
    SETTINGS: ClassVar[dict[str, Any]] = {
        **Choices.SETTINGS,
        "metric_list": _metrics("stance", "stance_top", "abs_stance", "agree", "mass", "first"),
    }

    def score(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        metrics = super().score(doc, results)
        del metrics["declined"]
        return {**metrics, "agree": (1 + doc["sign"] * metrics["stance"]) / 2}


class Open(StanceTask):
    """A free greedy answer, labelled by the judge named in the task's metadata."""

    FORMAT = "open"
    SETTINGS: ClassVar[dict[str, Any]] = {
        "output_type": "generate_until",
        "doc_to_target": "",
        "generation_kwargs": {"until": ["\n\n\n"], "max_gen_toks": OPEN_MAX_TOKENS, "do_sample": False},
        "metric_list": _metrics("stance", "abs_stance", *judges.LABELS, aggregation=mean),
    }

    def construct_requests(self, doc: dict[str, Any], ctx: str | list[str], **kwargs: Any) -> list[Instance] | Instance:
        assert isinstance(ctx, str)
        # Without a chat template nothing ends the question's turn; the pairs format puts the same break there.
        return super().construct_requests(doc, ctx if kwargs.get("apply_chat_template") else ctx + "\n", **kwargs)

    def score(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        judge = judges.get(self.judge_name, (self.topic,))
        return judges.as_values(judge.judge([doc["prompt"]], [str(results[0])])[0].label)


FORMAT_TASKS: dict[str, type[StanceTask]] = {cls.FORMAT: cls for cls in (Pairs, Statements, Open, Choices)}


def _group(name: str, children: list[Any], alias: str | None = None) -> Group:
    metrics = [AggMetricConfig(metric=m, aggregation="mean", weight_by_size=False) for m in ("stance", "abs_stance")]
    group = Group(name=name, alias=alias, aggregate_metric_list=metrics, metadata={"version": VERSION})
    for child in children:
        group.add(child)
    return group


def topic_group(topic: Topic, metadata: dict[str, Any] | None = None) -> Group:
    """The lm-eval group of one topic: a task for every format the topic has material for."""
    tasks = []
    for kind in topic.formats:
        config = {"task": f"{topic.task}_{kind}", "metadata": {**(metadata or {}), "topic_file": str(topic.path)}}
        tasks.append(FORMAT_TASKS[kind](config=config))
    return _group(topic.task, tasks, alias=topic.title)


class TopicGroup:
    """What a topic file's `class:` key names. Building it gives the group of that file's topic."""

    def __new__(cls, config: dict[str, Any] | None = None) -> Any:
        metadata = (config or {}).get("metadata", {})
        source = Path(metadata.get("config_source", ""))
        return topic_group(load_topic(source), _own(metadata))

    def __init__(self, config: dict[str, Any] | None = None) -> None: ...


class AllTopics:
    """A group of topics: every topic of that group in every folder lm-eval was shown; no file can shrink it."""

    def __new__(cls, config: dict[str, Any] | None = None) -> Any:
        from harness.lmeval.roots import all_roots

        given = config or {}
        name, metadata = str(given.get("task", GROUP)), _own(given.get("metadata", {}))
        members = [topic for topic in find_topics(all_roots()).values() if topic.group == name]
        return _group(name, [topic_group(topic, metadata) for topic in members])

    def __init__(self, config: dict[str, Any] | None = None) -> None: ...


def _own(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: metadata[key] for key in ("judge", "axes") if key in metadata}


def calling_model() -> TemplateLM:
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
