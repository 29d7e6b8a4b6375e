"""IDEOINST as topics (Chen et al. 2024): instructions are asked openly and judged, the paper's protocol, and as pairs.

S = (R - L) / (R + L + N) over judged answers is `stance` of the task `ideoinst_<topic>_open`. Every third instruction
measures, the others train; instructions that stand twice are kept once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from harness.errors import InputError, choices
from harness.wording import normalised

GROUP = "ideoinst"
PREFIX = f"{GROUP}_"
NEEDED = ("instruction", "left", "right")


def topic(file: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """One file as a topic.

    Raises:
        InputError: a record without the needed texts, with its number.
    """
    name = PREFIX + (re.sub(r"[^a-z0-9_]+", "_", file.stem.lower()).strip("_") or "unnamed")
    items, seen = [], set()
    for number, row in enumerate(records, 1):
        missing = [k for k in NEEDED if not isinstance(row.get(k), str) or not row[k].strip()]
        if missing:
            raise InputError(f"{file} record {number} lacks {choices(missing)}; expected texts {choices(NEEDED)}.")
        key = normalised(row["instruction"])
        if key in seen:
            continue
        seen.add(key)
        texts = {"question": row["instruction"].strip(), "left": row["left"].strip(), "right": row["right"].strip()}
        split = "measure" if len(items) % 3 == 2 else "train"
        items.append({"id": f"{name}-{len(items) + 1:04d}", "split": split, "sub_issue": "all", **texts})
    about = {"topic": name, "group": GROUP, "title": name, "context": "as given", "licence": "as given"}
    return {**about, "items": items}
