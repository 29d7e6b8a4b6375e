"""Running text as an lm-eval task: nats per token of every text, the utility that a fine-tune should not cost.

A task's YAML names its file of texts (JSONL with `id` and `text`) in `metadata.texts`, beside itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from harness.documents import read_jsonl
from harness.errors import InputError
from harness.lmeval.tasks import calling_model


class Text(ConfigurableTask):
    """Every text from its beginning, by its log-probability (nats) per token and per byte."""

    def __init__(self, config: dict[str, Any]) -> None:
        metadata = config.get("metadata") or {}
        self._rows = _texts(Path(metadata["config_source"]).parent / metadata["texts"])
        self._tokens: dict[str, int] = {}
        names = ("nats", "nats_per_byte")
        super().__init__(
            config={
                "task": config["task"],
                "test_split": "test",
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "{{text}}",
                "process_results": self.score,
                "metric_list": [{"metric": n, "aggregation": "mean", "higher_is_better": False} for n in names],
                "metadata": {"version": 1, **metadata},
            }
        )

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.dataset = datasets.DatasetDict({"test": datasets.Dataset.from_list(self._rows)})

    def doc_to_target(self, doc: Any, doc_to_target: Any = None) -> str:
        return doc["text"]  # lm-eval would read a text in brackets as a Python literal

    def construct_requests(self, doc: dict[str, Any], ctx: Any, **kwargs: Any) -> Any:
        self._tokens[doc["item"]] = len(calling_model().tok_encode(doc["text"], add_special_tokens=False))
        return super().construct_requests(doc, ctx, **kwargs)

    def score(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        total = float(results[0][0] if isinstance(results[0], tuple) else results[0])
        return {"nats": -total / self._tokens[doc["item"]], "nats_per_byte": -total / len(doc["text"].encode())}


def _texts(path: Path) -> list[dict[str, str]]:
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        if set(row) != {"id", "text"} or not str(row["text"]).strip():
            raise InputError(f"{path} record {number} has keys {', '.join(sorted(row))}; expected `id` and `text`.")
    return [{"item": row["id"], "text": row["text"], "prompt": row["text"]} for row in rows]
