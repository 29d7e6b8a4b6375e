"""The files beside the page: CSV in full precision, one JSON of everything but the samples, and report.md."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.report import content, tables
from harness.runs import write_json

if TYPE_CHECKING:
    from harness.compare import Comparison

FRAMES = ("stance", "shifts", "summary", "rates")
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_csv(comparison: Comparison, out: Path) -> None:
    """summary.csv, shifts.csv, stance.csv and samples.csv."""
    for name in ("summary", "shifts", "stance", "samples"):
        frame: pd.DataFrame = getattr(comparison, name)
        safe = frame.astype(object).map(guarded) if len(frame) else frame
        safe.to_csv(out / f"{name}.csv", index=False, encoding="utf-8", errors="replace", lineterminator="\n")


def guarded(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets a leading apostrophe; numbers stay numbers."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Everything except the samples; NaN and infinity become null."""
    fields = ("title", "on_topic", "headline", "verdict", "warnings", "measures", "runs", "localization")
    kept = {name: getattr(comparison, name) for name in fields}
    write_json(path, plain({**kept, **{name: getattr(comparison, name).to_dict("records") for name in FRAMES}}))


def plain(value: Any) -> Any:
    """Values as strict JSON has them."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, (str, bool, int, float)) else str(value)


def write_text(path: Path, text: str) -> None:
    """Labels may come from file names, whose lone surrogates UTF-8 cannot carry."""
    path.write_text(text, encoding="utf-8", errors="replace")


def markdown(comparison: Comparison) -> str:
    """report.md: verdict, warnings, the headline table, then every measure by topic."""
    text = tables.plain_text
    parts = [f"# {text(comparison.title)}"]
    parts += [f"- {text(sentence)}" for sentence in comparison.verdict]
    parts += [f"> **Warning:** {text(warning)}" for warning in comparison.warnings]
    for measure in content.measures_of(comparison):
        parts.append(f"## {text(content.title_of(comparison, measure))}")
        drawn = [content.summary(comparison, measure)]
        drawn += [content.by_topic(comparison, measure, which) for which in ("shift", "stance")]
        drawn += [found for role in ("tuned", "inhibited") if (found := content.matrix(comparison, measure, role))]
        for table in drawn:
            parts += [text(table.caption), tables.markdown(table)] if table.rows else []
    parts += ["## Runs", *(f"- {_run(run)}" for run in comparison.runs)]
    parts.append(f"{tables.NONE} means: not measured or not defined. The figures and the method stand in index.html.")
    return _spaced(parts)


def _run(run: dict[str, Any]) -> str:
    state = "partial, " if run["partial"] else ""
    where = f"{run['model']}, {run['engine']}, {state}{run['documents']} documents"
    return tables.plain_text(f"{run['label']} ({content.ROLES.get(run['role'], run['role'])}): {where}")


def _spaced(parts: list[str]) -> str:
    """A blank line between blocks, none between the items of one list."""
    text = parts[0]
    for before, part in pairwise(parts):
        text += ("\n" if before.startswith("- ") and part.startswith("- ") else "\n\n") + part
    return text + "\n"
