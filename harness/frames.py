"""Parquet files from anywhere, bounded before they are read, and with the columns that their readers need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from harness.characters import one_line
from harness.errors import InputError, choices

MOST_ROWS = 5_000_000
MOST_BYTES = 2_000_000_000
# text; truth: a boolean; numbers: a JSON object of numbers and nulls; texts: one of texts; list: a JSON list of texts.
Kind = Literal["text", "number", "truth", "numbers", "texts", "list"]


def read_frame(path: Path, columns: Mapping[str, Kind], again: str) -> pd.DataFrame:
    """A Parquet file as a frame. `again`: what makes it anew.

    Raises:
        InputError: no such file, one that is no Parquet or too large when unpacked, a column that is missing or holds
            something else.
    """
    try:
        about = pq.read_metadata(path)
        size = sum(about.row_group(n).total_byte_size for n in range(about.num_row_groups))
        if about.num_rows > MOST_ROWS or size > MOST_BYTES:
            raise InputError(
                f"{path} would unpack to {about.num_rows:,} rows and {size:,} bytes; at most {MOST_ROWS:,} rows and "
                f"{MOST_BYTES:,} bytes are read. {again}."
            )
        frame = pd.read_parquet(path)
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        LookupError,
        OverflowError,
        MemoryError,
        pa.ArrowException,
    ) as error:
        raise InputError(f"{path} cannot be read ({one_line(str(error))[:200]}). {again}.") from None
    if missing := [name for name in columns if name not in frame.columns]:
        raise InputError(f"{path} has no column {choices(missing)}: an older release wrote it, or none. {again}.")
    for name, kind in columns.items():
        if wrong := _wrong(frame[name], kind):
            raise InputError(f"{path}: column {name} holds {wrong}; expected {EXPECTED[kind]}. {again}.")
    return frame


EXPECTED: dict[Kind, str] = {
    "text": "text in every row",
    "number": "a number or nothing",
    "truth": "true or false",
    "numbers": "JSON objects of numbers and nulls",
    "texts": "JSON objects of texts",
    "list": "JSON lists of texts",
}


def _wrong(column: pd.Series, kind: Kind) -> str:
    if not isinstance(column, pd.Series):
        return "two columns of that name"
    if kind in ("truth", "number"):
        truth = pd.api.types.is_bool_dtype(column)
        number = pd.api.types.is_numeric_dtype(column) and not truth
        fits = number if kind == "number" else truth and not column.isna().any()
        return "" if fits else f"{column.dtype}"
    try:
        values = list(column)
    except UnicodeDecodeError:
        return "bytes that are no text in UTF-8"
    for value in values:
        if not isinstance(value, str):
            return f"a {type(value).__name__}"
        if kind != "text" and not _holds(value, kind):
            return "other text"
    return ""


def _holds(text: str, kind: Kind) -> bool:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if kind == "list":
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if not isinstance(value, dict):
        return False
    if kind == "texts":
        return all(isinstance(one, str) for one in value.values())
    return all(one is None or (isinstance(one, (int, float)) and abs(one) < 1e300) for one in value.values())
