"""Tasks of lm-eval's own, or of a folder, measured beside the culture tasks: commonsense_qa, qnli, mrpc and the like.

Their data sets come from the hub, so they are asked only where a study names them. Each must report `acc`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness import engines
from harness.characters import one_line
from harness.engines.lease import leased
from harness.errors import InputError, choices
from harness.files import write_parquet
from harness.measure import uses_chat
from harness.models import weights_hash
from harness.runs import Run, open_run


def check_extra(tasks: Sequence[str]) -> None:
    """Refuse names that lm-eval does not know; reads all of its task files, which takes seconds.

    Raises:
        InputError: an unknown name.
    """
    if tasks and (unknown := [name for name in tasks if not _manager().match_tasks([name])]):
        raise InputError(
            f"tasks_extra names {choices(unknown)}, which lm-eval does not know; `lm_eval ls tasks` lists what it does. A "
            "task of your own lies in a folder that the environment variable STANCE_TOPICS names."
        )


def extra_step(
    out: Path,
    folder: str,
    tasks: Sequence[str],
    limit: int | None,
    chat: str = "auto",
    engine: str = "vllm",
    settings: engines.Settings | None = None,
) -> Run:
    """Measure a folder of weights on lm-eval's tasks; `extra.parquet` holds task, item and acc.

    Raises:
        InputError: a task whose data cannot be had, or that reports no `acc`.
    """
    settings = settings or engines.Settings()
    spec = {"weights": weights_hash(folder), "tasks": list(tasks), "limit": limit, "chat": chat, "engine": engine}
    run = open_run(out, "extra", {**spec, "dtype": settings.dtype})
    if not run.complete:
        write_parquet(run.path / "extra.parquet", _asked(tasks, limit, chat, engine, folder, settings))
        run.finish()
    return run


def _asked(
    tasks: Sequence[str], limit: int | None, chat: str, engine: str, folder: str, settings: engines.Settings
) -> pd.DataFrame:
    from lm_eval.evaluator import evaluate

    from harness.lmeval.model import EngineLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        loaded = _manager().load(list(tasks))
    except (OSError, ValueError, RuntimeError) as error:
        reason = one_line(str(error))[:200]
        raise InputError(
            f"The data of {choices(tasks)} could not be had ({reason}). tasks_extra needs the hub or its cache; leave the "
            "key out where neither is there."
        ) from None
    with leased(engine, folder, settings) as serving:
        outcome: Any = evaluate(
            lm=EngineLM(serving),
            task_dict=loaded,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=uses_chat(serving.tokenizer, chat),
        )
    rows = [
        {"task": task, "item": str(sample["doc_id"]), "acc": sample.get("acc")}
        for task, samples in outcome["samples"].items()
        for sample in samples
    ]
    frame = pd.DataFrame(rows, columns=["task", "item", "acc"])
    if frame.empty or frame["acc"].isna().any():
        raise InputError(f"The tasks {choices(tasks)} do not report `acc` for every item; name tasks that do.")
    return frame.astype({"acc": float})


def _manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()
