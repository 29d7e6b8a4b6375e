"""A finished comparison's folder -> logs that other tools show. Each tool's library is imported when it is used."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from harness.documents import read_object
from harness.errors import InputError
from harness.files import check_schema
from harness.frames import Kind, read_frame
from harness.report.export import SCHEMA
from harness.shapes import ComparisonFile, check_shape

PROMPT = ["topic", "format", "item", "variant"]
COLUMNS: dict[str, Kind] = {**dict.fromkeys((*PROMPT, "prompt", "run", "answer"), "text"), "value": "number"}


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
    again = "Make the comparison again"
    read = read_object(file)
    check_schema(file, read.get("schema", 1), SCHEMA, "make the comparison again")
    check_shape(read, ComparisonFile, file, again)
    return Shared(read, read_frame(samples, COLUMNS, again))


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
