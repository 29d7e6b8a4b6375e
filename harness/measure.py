"""Measuring one model: lm-eval tasks through an engine -> one row per answer.

Base, tuned, held, patched and controls all go through `measure`; only the engine they are handed differs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness import judges
from harness.chat_template import template_effect
from harness.errors import InputError, choices
from harness.topics import FORMATS, GROUP, all_topics

if TYPE_CHECKING:
    from harness.engines import Engine

COLUMNS = (
    "task", "topic", "format", "item", "variant", "axes", "side", "control", "sub_issue", "question", "prompt", "options",
    "prompt_hash", "answer", "values", "labels",
)  # fmt: skip
OTHER = "other"  # the format of a task that is no stance probe


@dataclass(frozen=True)
class Asked:
    """What is asked of every model of a study.

    Attributes:
        tasks: lm-eval task or group names.
        limit: items per task, or per task by format (formats left out are asked whole; `other`: tasks that are no
            stance probes), or None for all. An item is asked in all its variants.
        chat: whether prompts go through the model's chat template.
        judge: who labels open answers; several, separated by commas, the first of them giving the stance.
        folders: the user's own topic folders.
        order_seed: shuffles the order of requests (see EngineLM).
        axes: levels that replace those of the topics' axes (see `harness.topics.Axes`).
        temperature: of open answers; 0 is greedy.
        sampling_seed: of open answers above temperature 0.
    """

    tasks: tuple[str, ...] = (GROUP,)
    limit: int | dict[str, int] | None = None
    chat: bool = True
    judge: str = "embedded"
    folders: tuple[Path, ...] = ()
    order_seed: int | None = None
    axes: dict[str, Any] = field(default_factory=dict)
    temperature: float = 0.0
    sampling_seed: int = 0


def check_tasks(asked: Asked) -> None:
    """Refuse unknown tasks, limits and judges before a model is loaded.

    Raises:
        InputError: an unknown task or judge, a limit below 1, or a broken topic file.
    """
    from harness.lmeval.roots import all_roots, task_manager

    numbers = asked.limit.values() if isinstance(asked.limit, dict) else [asked.limit]
    if any(n is not None and n < 1 for n in numbers):
        raise InputError(f"--limit is {asked.limit}; expected at least 1 item per task.")
    if isinstance(asked.limit, dict) and (unknown := set(asked.limit) - {*FORMATS, OTHER}):
        raise InputError(f"limit names {choices(unknown)}; formats: {choices([*FORMATS, OTHER])}.")
    for name in judges.names(asked.judge):
        judges.check(name)
    manager = task_manager(list(asked.folders), axes=asked.axes)
    for topic in all_topics(all_roots()).values():
        topic.varied(asked.axes)
    for name in asked.tasks:
        if not manager.match_tasks([name]):
            topics = [n for n in manager.all_tasks if not n.endswith(tuple(f"_{f}" for f in FORMATS))]
            raise InputError(
                f"There is no task {name!r}; topics: {choices(topics)}; one format of a topic: TASK_pairs, "
                "TASK_statements, TASK_open or TASK_choices. For topics of your own give --topics-dir FOLDER."
            )


def check_pairs_alone(asked: Asked, study: str) -> None:
    """Refuse other formats of stance probes, for a study that has one number per topic: nats per token of pairs.

    Raises:
        InputError: a task that asks a topic in another format.
    """
    from harness.lmeval.roots import task_manager

    manager = task_manager(list(asked.folders), axes=asked.axes)
    named = manager.load(manager.match_tasks(list(asked.tasks)))["tasks"]
    if odd := sorted(name for name in named if (_format(name) or "pairs") != "pairs"):
        raise InputError(
            f"{study} reads topics by their pairs, in nats per token; tasks ask {choices(odd[:4])} too, which are of other "
            f'units. Name the pairs: tasks: ["{GROUP}_*_pairs"], or {GROUP}_TOPIC_pairs.'
        )


def uses_chat(tokenizer: Any, setting: str) -> bool:
    """`auto` -> whether the model has a chat template; `on` demands one.

    Raises:
        InputError: `on` for a model without a template, or a template that cannot be carried out.
        ProofError: a template that leaves the question out or adds nothing to it.
    """
    if setting == "on" and not tokenizer.chat_template:
        raise InputError("The model has no chat template; use --chat-template off (or auto).")
    if setting == "off" or not tokenizer.chat_template:
        return False
    template_effect(tokenizer)
    return True


def prompt_ids(tokenizer: Any, text: str, chat: bool, end: str = "\n") -> list[int]:
    """A question's token ids as the model is asked it: in its chat template, or followed by `end`."""
    if not chat:
        return list(tokenizer(text + end)["input_ids"])
    turn = [{"role": "user", "content": text}]
    asked = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(asked, add_special_tokens=False)["input_ids"])


def measure(engine: Engine, asked: Asked) -> tuple[dict[str, Any], pd.DataFrame]:
    """Ask every task of one engine.

    Returns:
        results: lm-eval's metrics by task and group.
        samples: one row per document, columns COLUMNS; `values` is a JSON object of the document's metrics.
    """
    from lm_eval.evaluator import evaluate

    from harness.lmeval.model import EngineLM
    from harness.lmeval.roots import all_roots, task_manager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = task_manager(list(asked.folders), axes=asked.axes)
    tasks = manager.load(manager.match_tasks(list(asked.tasks)))
    outcome: Any = evaluate(
        lm=EngineLM(engine, asked.order_seed, asked.temperature, asked.sampling_seed),
        task_dict=tasks,
        samples=chosen_documents(tasks["tasks"], asked.limit),
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=asked.chat,
    )
    assert outcome is not None
    controls = {topic.task for topic in all_topics(all_roots()).values() if topic.control}
    samples = pd.DataFrame(
        [_row(task, sample, controls) for task, rows in outcome["samples"].items() for sample in rows],
        columns=list(COLUMNS),
    )
    if samples.empty:
        raise InputError(f"The tasks {choices(asked.tasks)} hold no documents.")
    results = {"results": outcome["results"], "groups": outcome.get("groups", {}), "documents": len(samples)}
    return json.loads(json.dumps(results, default=str)), samples


def chosen_documents(tasks: dict[str, Any], limit: int | dict[str, int] | None) -> dict[str, list[int]] | None:
    """The documents of every task's first items, as many items as its limit says."""
    if limit is None:
        return None
    chosen = {}
    for name, task in tasks.items():
        items = [doc.get("item", number) for number, doc in enumerate(task.eval_docs)]
        most = limit.get(_format(name) or OTHER, len(items)) if isinstance(limit, dict) else limit
        kept = set(list(dict.fromkeys(items))[:most])
        chosen[name] = [number for number, item in enumerate(items) if item in kept]
    return chosen


def _format(task: str) -> str:
    return next((f for f in FORMATS if task.endswith(f"_{f}")), "")


def _row(task: str, sample: dict[str, Any], controls: set[str]) -> tuple[Any, ...]:
    doc, kind = sample["doc"], _format(task)
    topic = task.removesuffix(f"_{kind}") if kind else task
    requests = _requests(sample["arguments"])
    answers = [response[0] if isinstance(response, (list, tuple)) else response for response in sample["resps"]]
    answer = str(answers[0]) if kind == "open" else json.dumps(answers, default=str)
    known = {m: sample[m] for m in sample["metrics"] if isinstance(sample.get(m), (int, float))}
    values = {m: None if math.isnan(v) else float(v) for m, v in known.items()}
    label = next((name for name in judges.LABELS if kind == "open" and values.get(name)), None)
    digest = hashlib.sha256(json.dumps(requests, default=str).encode()).hexdigest()
    return (
        task,
        topic.removeprefix(f"{GROUP}_"),
        kind or OTHER,
        str(doc.get("item", sample["doc_id"])),
        str(doc.get("variant", "")),
        json.dumps(doc.get("axes") or {}),
        _side(doc),
        topic in controls,
        str(doc.get("sub_issue", "")),
        str(doc.get("prompt", requests[0][0])),
        str(requests[0][0]),
        json.dumps(doc["choices"] if kind == "pairs" else []),
        digest,
        answer,
        json.dumps(values),
        json.dumps({judges.EMBEDDED: label} if label else {}),
    )


def _side(doc: dict[str, Any]) -> str:
    """The side that a document itself takes: that of its claim, or of the asker; empty where it takes none."""
    sign = doc.get("sign", 0.0)
    framing = (doc.get("axes") or {}).get("framing", "")
    return ("right" if sign > 0 else "left") if sign else framing if framing in ("left", "right") else ""


def _requests(arguments: Any) -> list[list[Any]]:
    """lm-eval writes arguments as nested dicts when it logs and as tuples before; both become lists."""
    groups = arguments.values() if isinstance(arguments, dict) else arguments
    return [list(a.values()) if isinstance(a, dict) else list(a) for a in groups]
