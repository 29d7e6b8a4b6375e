"""A run is a folder. `manifest.json` is written last, so a folder that has one is complete.

A run says what it was made from (`spec`): asking for it again with the same spec is a no-op, with another one an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from harness import __version__
from harness.errors import InputError

SCHEMA = 2
PACKAGES = ("torch", "transformers", "peft", "trl", "lm-eval", "vllm", "numpy", "pandas")


def digest(value: Any) -> str:
    """SHA-256 of a value as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is either the old one or the whole new one."""
    scratch = path.with_suffix(path.suffix + ".part")
    with scratch.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, default=str)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


@dataclass
class Run:
    """One run folder being made or read."""

    path: Path
    kind: str
    spec: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    @property
    def complete(self) -> bool:
        return (self.path / "manifest.json").is_file()

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))

    def finish(self) -> None:
        """Write the manifest; the run is complete from here on."""
        manifest = {
            "schema": SCHEMA,
            "kind": self.kind,
            "spec": self.spec,
            "spec_hash": digest(self.spec),
            **self.notes,
            "command": ["stance", *sys.argv[1:]],
            "started": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - self.started, 1),
            "versions": {"stance-harness": __version__, "python": platform.python_version(), **package_versions()},
            "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        }
        write_json(self.path / "manifest.json", manifest)


def open_run(path: Path, kind: str, spec: dict[str, Any]) -> Run:
    """A run folder for this spec; check `complete` before doing the work.

    Raises:
        InputError: the folder holds a complete run of another kind or spec, or cannot be written.
    """
    run = Run(Path(path), kind, json.loads(json.dumps(spec, default=str)))
    if run.complete:
        old = run.manifest
        if old["kind"] != kind or old["spec_hash"] != digest(run.spec):
            before = old["spec"]
            keys = [k for k in {**before, **run.spec} if before.get(k) != run.spec.get(k)]
            changed = "; ".join(f"{k}: {before.get(k)!r} there, {run.spec.get(k)!r} now" for k in keys) or "the kind"
            raise InputError(
                f"{path} holds a finished {old['kind']} made otherwise ({changed}). Nothing is overwritten: "
                "give another --out, or remove the folder."
            )
        return run
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        (run.path / ".write-test").touch()
        (run.path / ".write-test").unlink()
    except OSError as error:
        raise InputError(f"Cannot write to {path} ({error.strerror}); give another --out.") from None
    return run


def kept_answers(
    run: Run, ask: Callable[[], tuple[dict[str, Any], pd.DataFrame]]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Results and samples as `ask` gives them, or as it gave them to an earlier attempt at this very run.

    A judge that fails afterwards then costs no model's answers.
    """
    answers, about = run.path / "answers.parquet", run.path / "answers.json"
    if about.is_file() and answers.is_file():
        kept = json.loads(about.read_text(encoding="utf-8"))
        if kept["spec_hash"] == digest(run.spec):
            run.notes.update(kept["notes"])
            return kept["results"], pd.read_parquet(answers)
    results, samples = ask()
    samples.to_parquet(answers, index=False)
    write_json(about, {"spec_hash": digest(run.spec), "results": results, "notes": run.notes})
    return results, samples


def save_measurement(run: Run, results: dict[str, Any], samples: pd.DataFrame) -> None:
    """results.json, samples.parquet, then the manifest."""
    write_json(run.path / "results.json", results)
    samples.to_parquet(run.path / "samples.parquet.part", index=False)
    (run.path / "samples.parquet.part").replace(run.path / "samples.parquet")
    run.notes["documents"] = len(samples)
    run.finish()
    for name in ("answers.parquet", "answers.json"):
        (run.path / name).unlink(missing_ok=True)


def load_measurement(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Manifest and samples of a complete measurement.

    Raises:
        InputError: no such folder, not complete, or not a measurement.
    """
    path = Path(path)
    manifest = path / "manifest.json"
    if not manifest.is_file():
        state = "it was not finished: run the same command again" if path.is_dir() else "there is no such folder"
        raise InputError(f"{path} holds no finished run ({state}); expected a folder that `stance eval --out` wrote.")
    try:
        read = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{manifest} is not readable JSON ({error}); make the run again.") from None
    if read.get("schema") != SCHEMA:
        raise InputError(f"{manifest} has schema {read.get('schema')}; this release reads {SCHEMA}.")
    if read.get("kind") != "measure":
        raise InputError(f"{path} holds a {read.get('kind')}; expected a measurement that `stance eval --out` wrote.")
    return read, pd.read_parquet(path / "samples.parquet")


def package_versions() -> dict[str, str]:
    """Versions of what figures depend on, of those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
