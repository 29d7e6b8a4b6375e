"""Multiple choice as OpinionQA has it (Santurkar et al. 2023, arXiv 2303.17548): a question, its options, a value for each.

`values` places options on -1 (left) .. +1 (right); an option that is no answer ("Refused") has null, in a CSV an empty
place. In a CSV options and values are separated by `|`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import InputError, choices


def material(file: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The choices of a JSONL or CSV file.

    Raises:
        InputError: a record without question, options and values, or a value that is no number, with its number.
    """
    found = []
    for number, row in enumerate(records, 1):
        try:
            options, values = _listed(row["options"]), [_value(v) for v in _listed(row["values"])]
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise InputError(
                f"{file} record {number} cannot be read ({error}); expected question, options and values, came "
                f"{choices(map(str, row))}."
            ) from None
        about = {"id": str(row.get("id") or f"c{number:04d}"), "sub_issue": str(row.get("sub_issue") or "all")}
        found.append({**about, "question": row.get("question"), "options": options, "values": values})
    return {"choices": found}


def _listed(value: Any) -> list[Any]:
    return [part.strip() for part in value.split("|")] if isinstance(value, str) else list(value)


def _value(value: Any) -> float | None:
    return None if value is None or value == "" else float(value)
