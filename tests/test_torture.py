"""`make torture` in small: a measurement and a folder of tensors, killed in every write and at every second operation."""

from __future__ import annotations

import os
import random
import signal
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import tiny
import torch
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).parent / "torture"))

import study
from faults import Fault, Operations, lose_unsynced

from harness import runs
from harness.engines.cached import AnswerStore, CachedEngine

REQUESTS = [([n, n + 1], [n]) for n in range(2, 14)]


class Echo:
    """Says what it was asked."""

    def score_continuations(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [(float(context[0]), True) for context, _ in requests]

    def close(self) -> None: ...


def make(place: Path) -> None:
    """Two run folders, by a clock that stands."""
    runs.time = SimpleNamespace(time=lambda: 0.0)  # type: ignore[assignment]
    first = runs.open_run(place / "out" / "01-measure", "measure", {"asked": 12})
    if not first.complete:

        def ask() -> tuple[dict[str, Any], pd.DataFrame]:
            with closing(AnswerStore(place / "cache" / "answers.sqlite")) as store:
                cached = CachedEngine(Echo, store, "id", "echo", tiny.tokenizer(), 64, chunk=4)
                scores = [score for score, _ in cached.score_continuations(REQUESTS)]
                first.notes["requests"] = {"asked": cached.asked, "from_cache": cached.hits}
            return {"results": {}}, pd.DataFrame({"score": scores})

        runs.save_measurement(first, *runs.kept_answers(first, ask))
    second = runs.open_run(place / "out" / "02-tensors", "localize", {"of": "first"})
    if not second.complete:
        save_file({"a": torch.arange(500)}, second.path / "a.safetensors")  # as a library writes: not synced
        runs.write_json(second.path / "b.json", list(range(50)))
        second.finish()


def forked(place: Path, fault: Fault | None, changes: int = 0, syncs: int = 0) -> int:
    """`make` in a child that the fault befalls; how it ended. The counts stand in `place`/counts."""
    child = os.fork()
    if not child:
        code = 1
        try:
            operations = Operations(place, fault, changes, syncs)
            operations.watch()
            make(place)
            changes, syncs = operations.changes, operations.syncs
            (place / "counts").write_text(f"{changes} {syncs}")
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int, int]:
    place = tmp_path_factory.mktemp("plain")
    assert forked(place, None) == 0
    changes, syncs = map(int, (place / "counts").read_text().split())
    return study.contents(place), changes, syncs


@pytest.mark.parametrize("kind", ["write", "inside", "power"])
def test_killed_anywhere_it_goes_on_to_the_same_bytes(
    kind: str, plain: tuple[dict[str, Any], int, int], tmp_path: Path
) -> None:
    expected, changes, syncs = plain
    assert changes > 20 and syncs > 15 and len(expected) == 6
    total, lost = (syncs if kind == "inside" else changes), 0
    for n in range(0, total, 1 if kind == "inside" else 2):  # `make torture` tries more of them
        place = tmp_path / str(n)
        place.mkdir()
        assert forked(place, Fault(kind, (n + 0.5) / total), changes, syncs) == -signal.SIGKILL
        if kind == "power":
            lost += lose_unsynced(place, random.Random(n))
        before = study.finished(place)
        assert forked(place, None) == 0, f"{kind} at {n}"
        assert list(study.unlike(expected, study.contents(place))) == [], f"{kind} at {n}"
        assert before.items() <= study.finished(place).items(), f"{kind} at {n}"
    assert kind != "power" or lost


def test_a_power_cut_would_be_noticed(
    plain: tuple[dict[str, Any], int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting for the disk, a finished run is not what it was: the test above can fail."""
    expected, changes, syncs = plain
    for module in ("files", "checksums", "runs"):
        monkeypatch.setattr(f"harness.{module}.sync", lambda path: None)
    assert forked(tmp_path, Fault("power", 0.99), changes, syncs) == -signal.SIGKILL
    assert lose_unsynced(tmp_path, random.Random(0)) > 5
    monkeypatch.undo()
    assert forked(tmp_path, None) != 0 or list(study.unlike(expected, study.contents(tmp_path)))
