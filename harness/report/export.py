"""The files beside the page: CSV and Parquet in full precision, one JSON of everything but the samples, report.md, tables."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness import files
from harness.files import replacing
from harness.report import content, dose, latex, quality, tables, tradeoff
from harness.report.page import MATRICES
from harness.report.tables import Cell, Row, Table
from harness.report.text_files import carried, write_frame, write_text

if TYPE_CHECKING:
    from harness.compare import Comparison

SCHEMA = 1  # of comparison.json
FRAMES = ("stance", "shifts", "summary", "rates")


def write_csv(comparison: Comparison, out: Path) -> None:
    """NAME.csv of every frame: those of FRAMES, the samples, and how far they can be believed."""
    frames = {name: getattr(comparison, name) for name in (*FRAMES, "samples")} | comparison.quality
    for name, frame in frames.items():
        write_frame(frame, out / f"{name}.csv")


def write_parquet(comparison: Comparison, path: Path) -> None:
    """The samples, typed: `value` a double, everything else text as it was, without samples.csv's apostrophes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = comparison.samples
    columns = {}
    for name in frame.columns:
        if name == "value":
            columns[name] = pa.array(pd.to_numeric(frame[name]).astype("float64"), pa.float64(), from_pandas=True)
        else:
            texts = [None if pd.isna(value) else carried(str(value)) for value in frame[name]]
            columns[name] = pa.array(texts, pa.string())
    with replacing(path) as file:
        pq.write_table(pa.table(columns), file)


def write_tables(comparison: Comparison, out: Path) -> None:
    """NAME.tex of every table that has rows."""
    for name, table in leading_tables(comparison).items():
        note = "" if name.startswith("neurons") else content.partial(comparison)
        write_text(out / f"{name}.tex", latex.latex(table, f"stance-{name}", note))


def leading_tables(comparison: Comparison) -> dict[str, Table]:
    """Name -> table: what the page shows of the leading measure, of the neurons and of how the answers fell."""
    measure = comparison.headline
    found = {"summary": content.summary(comparison, measure)}
    found |= {which: content.by_topic(comparison, measure, which) for which in ("stance", "shift")}
    if trades := tradeoff.trades(comparison, measure):
        found["tradeoff"] = tradeoff.table(trades)
    if rising := dose.doses(comparison, measure):
        found["dose"] = dose.table(rising)
    for role in MATRICES:
        if matrix := content.matrix(comparison, measure, role):
            found[f"matrix-{role}"] = matrix
    found |= neuron_tables(comparison) | quality_tables(comparison) | rate_tables(comparison)
    return {name: table for name, table in found.items() if table.rows}


def neuron_tables(comparison: Comparison) -> dict[str, Table]:
    """Overlap between topics, and the ranking's correlation with activation size; empty without a localisation."""
    found = comparison.localization
    if not found:
        return {}
    rows = [
        Row(content.topic_name(topic), (Cell(tables.number(value)),))
        for topic, value in found["rank_correlation"].items()
    ]
    caption = "Rank correlation with plain activation size; near 1 means: selected because it is large"
    return {
        "neurons-overlap": content.square("Overlap of the selected neurons between topics (Jaccard)", found["overlap"]),
        "neurons-correlation": Table(caption, "Topic", ("Correlation",), tuple(rows)),
    }


def quality_tables(comparison: Comparison) -> dict[str, Table]:
    """How far the figures can be believed."""
    return {f"quality-{name}": part.table for name, part in quality.parts(comparison).items()}


def rate_tables(comparison: Comparison) -> dict[str, Table]:
    """How the answers of each format fell, over all topics."""
    kinds = dict.fromkeys(str(kind) for kind in comparison.rates["format"])
    found = {f"rates-{slug(kind)}": content.rates(comparison, kind) for kind in kinds}
    return {name: table for name, table in found.items() if table}


def slug(text: object) -> str:
    """Letters, digits, dots and dashes of a label, for a file name; never empty, never hidden, never a path."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", str(text)).strip(".-")[:60] or "unnamed"


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Everything except the samples; NaN and infinity become null."""
    fields = ("title", "on_topic", "headline", "verdict", "warnings", "measures", "runs", "localization")
    kept = {name: getattr(comparison, name) for name in fields}
    frames = {name: getattr(comparison, name).to_dict("records") for name in FRAMES}
    quality = {name: frame.to_dict("records") for name, frame in comparison.quality.items()}
    files.write_json(path, plain({"schema": SCHEMA, **kept, **frames, "quality": quality}))


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


def markdown(comparison: Comparison) -> str:
    """report.md: verdict, warnings, the headline table, every measure by topic, the neurons, how the answers fell."""
    text = tables.plain_text
    parts = [f"# {text(comparison.title)}"]
    parts += [f"- {text(sentence)}" for sentence in comparison.verdict]
    parts += [f"> **Warning:** {text(warning)}" for warning in comparison.warnings]
    for measure in content.measures_of(comparison):
        parts.append(f"## {text(content.title_of(comparison, measure))}")
        drawn = [content.summary(comparison, measure)]
        drawn += [content.by_topic(comparison, measure, which) for which in ("shift", "stance")]
        if trades := tradeoff.trades(comparison, measure):
            drawn.append(tradeoff.table(trades))
        if rising := dose.doses(comparison, measure):
            drawn.append(dose.table(rising))
        drawn += [found for role in MATRICES if (found := content.matrix(comparison, measure, role))]
        parts += _drawn(drawn)
    sections = (
        ("Where the neurons are", neuron_tables),
        ("How far to believe this", quality_tables),
        ("How the answers fell", rate_tables),
    )
    for title, made in sections:
        found = _drawn(list(made(comparison).values()))
        parts += [f"## {title}", *found] if found else []
    parts += ["## Runs", *(f"- {_run(run)}" for run in comparison.runs)]
    parts.append(f"{tables.NONE} means: not measured or not defined. The figures and the method stand in index.html.")
    return _spaced(parts)


def _drawn(made: list[Table]) -> list[str]:
    return [part for table in made if table.rows for part in (tables.plain_text(table.caption), tables.markdown(table))]


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
