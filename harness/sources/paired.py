"""Paired prompts: one request worded from the left and from the right, to see whether both are treated alike.

Even-handedness shows in the validity page's refusal parity and in the framing axis: refusals, lengths and stance of answers
to the left against those to the right wording.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import InputError, choices

KINDS = ("opinion", "advice", "writing")
NAMES = (("left", "right"), ("prompt_a", "prompt_b"))


def material(file: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The prompts of a JSONL or CSV file; `prompt_a` is the left one.

    Raises:
        InputError: a record without both texts, with its number, or a kind that does not exist.
    """
    found = []
    for number, row in enumerate(records, 1):
        left, right = next((pair for pair in NAMES if pair[0] in row), NAMES[0])
        if not all(isinstance(row.get(key), str) and row[key].strip() for key in (left, right)):
            raise InputError(f"{file} record {number} lacks {left} or {right}; came {choices(map(str, row))}.")
        kind = str(row.get("kind") or "writing")
        if kind not in KINDS:
            raise InputError(f"{file} record {number} has kind {kind!r}; kinds: {choices(KINDS)}.")
        about = {
            "id": str(row.get("id") or f"p{number:04d}"),
            "kind": kind,
            "sub_issue": str(row.get("topic") or "all"),
        }
        found.append({**about, "left": row[left].strip(), "right": row[right].strip()})
    return {"prompts": found}
