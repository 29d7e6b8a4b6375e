"""A run is a folder. `manifest.json` is written last, so a folder that has one is complete.

A run says what it was made from (`spec`): asking for it again with the same spec is a no-op, with another one an error. While
it is made the folder is locked, and `unfinished.json` says what is being made; what the files must be stands in the manifest.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from harness import __version__
from harness.checksums import (
    BEGUN,
    MANIFEST,
    PASSING,
    check_files,
    digest,
    file_hash,
    stamp,
    write_manifest,
)
from harness.documents import read_object
from harness.errors import InputError
from harness.files import check_schema, sweep, sync, writable, write_json, write_parquet
from harness.frames import Kind, read_frame
from harness.locks import NAME, lock, unlock
from harness.process import command
from harness.progress import note

SCHEMA, OLDEST = 3, 2
ANSWERS = 1  # schema of answers.json
PACKAGES = ("torch", "transformers", "peft", "trl", "lm-eval", "vllm", "numpy", "pandas")

__all__ = [
    "Run",
    "digest",
    "kept_answers",
    "load_measurement",
    "load_run",
    "open_run",
    "save_measurement",
    "write_json",
]


@dataclass
class Run:
    """One run folder being made or read."""

    path: Path
    kind: str
    spec: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=lambda: time.time())
    lock: FileLock | None = field(default=None, repr=False, compare=False)

    @property
    def complete(self) -> bool:
        return (self.path / MANIFEST).is_file()

    @property
    def manifest(self) -> dict[str, Any]:
        return read_object(self.path / MANIFEST)

    def begin(self) -> None:
        """Take the folder and say in it what is being made.

        Raises:
            InputError: another process has it, another run was left there unfinished, or it cannot be written.
        """
        with writable(self.path):
            if not self.path.is_dir():
                self.path.mkdir(parents=True, exist_ok=True)
                sync(self.path.parent)
        self.lock = lock(self.path)
        if self.complete:  # another process has just finished it
            self._release()
            return
        sweep(self.path)
        begun = {"schema": SCHEMA, "kind": self.kind, "spec": self.spec, "beside": self._beside()}
        write_json(self.path / BEGUN, begun)

    def _beside(self) -> dict[str, list[int]]:
        """What stands in the folder and is not this run's; what an attempt at this very run left is taken up."""
        there = {path.name: stamp(path) for path in self.path.iterdir() if path.name not in {*PASSING, NAME}}
        if not (self.path / BEGUN).is_file():
            return there
        try:
            left = read_object(self.path / BEGUN)
            same = (left["kind"], left["spec"]) == (self.kind, self.spec)
            beside = {name: list(known) for name, known in left["beside"].items()}
        except (InputError, KeyError, TypeError, AttributeError):
            same, beside, left = False, {}, {}
        if not same and (remains := [name for name in there if beside.get(name) != there[name]]):
            raise InputError(
                f"{self.path} holds an unfinished {left.get('kind', 'run')} made otherwise "
                f"({differences(left.get('spec'), self.spec)}), with {', '.join(sorted(remains)[:3])}. Nothing is mixed: "
                "give another --out, or remove the folder."
            )
        return beside

    def finish(self) -> None:
        """Write the manifest; the run is complete from here on.

        Raises:
            InputError: the disk is full or closed; the run is then not complete.
        """
        begun = self.path / BEGUN
        beside = read_object(begun)["beside"] if begun.is_file() else {}
        manifest = {
            "schema": SCHEMA,
            "kind": self.kind,
            "spec": self.spec,
            "spec_hash": digest(self.spec),
            **self.notes,
            "command": command(),
            "started": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - self.started, 1),
            "versions": {"stance-harness": __version__, "python": platform.python_version(), **package_versions()},
            "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        }
        write_manifest(self.path, manifest, beside)
        self.tidy()
        self._release()

    def tidy(self) -> None:
        """Remove what was needed only while the run was made."""
        for name in PASSING - {MANIFEST}:
            with suppress(OSError):
                (self.path / name).unlink(missing_ok=True)

    def _release(self) -> None:
        if self.lock is not None:
            unlock(self.lock)
            self.lock = None


def open_run(path: Path, kind: str, spec: dict[str, Any]) -> Run:
    """A run folder for this spec; check `complete` before doing the work. Until `finish` no other process may have it.

    Raises:
        InputError: the folder holds a run of another kind or spec, one whose files have changed, or one that another process
            is making; or it cannot be written.
    """
    run = Run(Path(path), kind, json.loads(json.dumps(spec, default=str)))
    if not run.complete:
        run.begin()
    if run.complete:
        old = read_manifest(run.path)
        if old["kind"] != kind or old["spec_hash"] != digest(run.spec):
            raise InputError(
                f"{path} holds a finished {old['kind']} made otherwise ({differences(old['spec'], run.spec)}). Nothing is "
                "overwritten: give another --out, or remove the folder."
            )
        check_files(run.path, old)
        run.tidy()
        if (run.path / NAME).exists():  # of a process that was killed at its very end
            with suppress(InputError):
                unlock(lock(run.path))
    return run


def differences(before: Any, now: dict[str, Any]) -> str:
    """Which keys of two specs differ, and how."""
    before = before if isinstance(before, dict) else {}
    keys = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    return "; ".join(f"{k}: {before.get(k)!r} there, {now.get(k)!r} now" for k in keys) or "the kind"


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a complete run.

    Raises:
        InputError: it cannot be read, lacks what every run says, or is of a release that cannot be read.
    """
    file = path / MANIFEST
    read = read_object(file)
    check_schema(file, read.get("schema"), SCHEMA, "make the run again", OLDEST)
    texts = [key for key in ("kind", "spec_hash") if not isinstance(read.get(key), str)]
    if texts or not isinstance(read.get("spec"), dict):
        raise InputError(
            f"{file} does not say its {', '.join(texts) or 'spec'}: it has been altered. Make the run again."
        )
    if read["schema"] < SCHEMA:
        unchecked(str(path))
    elif not {"checksum", "files"} <= set(read):
        raise InputError(f"{file} has no checksums: it has been altered. Make the run again.")
    return read


@cache
def unchecked(path: str) -> None:
    """Say once that a run's files cannot be checked."""
    note(f"{path} was made before runs kept checksums; its files are read as they are.")


def kept_answers(
    run: Run, ask: Callable[[], tuple[dict[str, Any], pd.DataFrame]]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Results and samples as `ask` gives them, or as it gave them to an earlier attempt at this very run.

    A judge that fails afterwards then costs no model's answers.
    """
    answers, about = run.path / "answers.parquet", run.path / "answers.json"
    identity = {"schema": ANSWERS, "spec_hash": digest(run.spec)}
    with suppress(InputError, OSError, KeyError, TypeError):  # what cannot be believed is asked again
        kept = read_object(about)
        if kept["identity"] == {**identity, "answers": file_hash(answers)}:
            run.notes.update(kept["notes"])
            return kept["results"], pd.read_parquet(answers)
    results, samples = ask()
    write_parquet(answers, samples)
    identity["answers"] = file_hash(answers)
    write_json(about, {"identity": identity, "results": results, "notes": run.notes})
    return results, samples


def save_measurement(run: Run, results: dict[str, Any], samples: pd.DataFrame) -> None:
    """results.json, samples.parquet, then the manifest."""
    write_json(run.path / "results.json", results)
    write_parquet(run.path / "samples.parquet", samples)
    run.notes["documents"] = len(samples)
    run.finish()


_TEXTS = (
    "task",
    "topic",
    "format",
    "item",
    "variant",
    "side",
    "sub_issue",
    "question",
    "prompt",
    "prompt_hash",
    "answer",
)
SAMPLES: dict[str, Kind] = {
    **dict.fromkeys(_TEXTS, "text"),
    **{"control": "truth", "values": "numbers", "labels": "texts", "axes": "texts", "options": "list"},
}


def load_measurement(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Manifest and samples of a complete measurement.

    Raises:
        InputError: no such folder, not complete, not a measurement, or a file of it has changed.
    """
    path = Path(path)
    read = load_run(path, "measure", "a measurement that `stance eval --out` wrote")
    again = f"Remove {path} and give its command again; what the model said is in the cache of answers"
    return read, read_frame(path / "samples.parquet", SAMPLES, again)


def load_run(path: Path, kind: str, expected: str) -> dict[str, Any]:
    """Manifest of a complete run of a kind, every file of which is what it was.

    Raises:
        InputError: no such folder, not complete, of another kind, or a file of it has changed.
    """
    if not (path / MANIFEST).is_file():
        state = "it was not finished: run the same command again" if path.is_dir() else "there is no such folder"
        raise InputError(f"{path} holds no finished run ({state}); expected {expected}.")
    read = read_manifest(path)
    if read["kind"] != kind:
        raise InputError(f"{path} holds a {read['kind']}; expected {expected}.")
    check_files(path, read)
    return read


def package_versions() -> dict[str, str]:
    """Versions of what figures depend on, of those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
