"""A finished comparison's folder -> logs that other tools show. Each tool's library is imported when it is used."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from harness.errors import InputError, choices
from harness.files import check_schema
from harness.report.export import SCHEMA

KEYS = ("title", "headline", "verdict", "warnings", "measures", "runs", "stance", "shifts", "summary", "rates")
PROMPT = ["topic", "format", "item", "variant"]


@dataclass(frozen=True)
class Shared:
    """What comparison.json and samples.parquet of one folder hold."""

    comparison: dict[str, Any]
    samples: pd.DataFrame

    @property
    def headline(self) -> str:
        return self.comparison["headline"]

    def numbers(self, run: str, measure: str | None = None) -> dict[str, dict[str, Any]]:
        """`stance/TOPIC`, `shift/TOPIC` and each metric over topics -> value, low, high, n; undefined ones are not there.

        Args:
            run: a run's label.
            measure: the leading one if not given.
        """
        found = {}
        for frame, key, name in (
            ("stance", "value", "topic"),
            ("shifts", "shift", "topic"),
            ("summary", "value", "metric"),
        ):
            start = {"stance": "stance/", "shifts": "shift/", "summary": ""}[frame]
            for row in self.comparison[frame]:
                if row["run"] == run and row["measure"] == (measure or self.headline) and row[key] is not None:
                    ends = {end: row[end] for end in ("low", "high", "n")}
                    found[f"{start}{row[name]}"] = {"value": row[key], **ends}
        return found


def read_folder(folder: Path) -> Shared:
    """What `stance compare --out` or `stance run` left in a folder.

    Raises:
        InputError: the folder holds no finished comparison, one of an older release, or one that cannot be read.
    """
    file, samples = folder / "comparison.json", folder / "samples.parquet"
    if not file.is_file():
        state = "it is there, without comparison.json" if folder.is_dir() else "there is no such folder"
        raise InputError(
            f"{folder} holds no comparison ({state}); expected a folder that `stance compare --out` or `stance run` wrote."
        )
    if not samples.is_file():
        raise InputError(f"{folder} has no samples.parquet; an older release wrote it, so give its command once more.")
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
        frame = pd.read_parquet(samples)
    except (ValueError, OSError) as error:
        raise InputError(f"{folder} cannot be read ({error}); make the comparison again.") from None
    if isinstance(read, dict):
        check_schema(file, read.get("schema", 1), SCHEMA, "make the comparison again")
    absent = [key for key in KEYS if not isinstance(read, dict) or key not in read]
    lacking = [name for name in (*PROMPT, "prompt", "run", "answer", "value") if name not in frame.columns]
    if absent or lacking:
        raise InputError(
            f"{folder} is not a comparison of this release: comparison.json lacks {choices(absent)}, samples.parquet lacks "
            f"{choices(lacking)}; make the comparison again."
        )
    utf8 = json.dumps(read, ensure_ascii=False).encode("utf-8", "replace")  # no lone surrogates, as in samples.parquet
    return Shared(json.loads(utf8), frame)


def library(name: str) -> ModuleType:
    """An optional library.

    Raises:
        InputError: it is not installed, or cannot be imported here.
    """
    package = name.partition(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(name)
    except ImportError as error:
        state = "is not installed" if error.name == package else f"cannot be imported ({error})"
        raise InputError(f"This needs the package {package}, which {state}; get it by: pip install {package}") from None
