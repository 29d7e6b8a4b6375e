"""IDEOINST-like folders as topics: `<topic>.jsonl` with `instruction`, `left`, `right` (Chen et al. 2024).

The texts stay the user's: they are converted into topic files in the cache and never shipped. Judge labels
(`left_label`, `right_label`) are not needed here. Every third instruction measures, the others train; instructions that
stand twice are kept once.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from harness.errors import InputError, choices
from harness.models import cache_folder
from harness.runs import digest, file_hash
from harness.topics import GROUP, LM_EVAL_CLASS, load_topic, read_jsonl
from harness.wording import normalised

PREFIX = "data_"
NEEDED = ("instruction", "left", "right")


def as_topics(folder: Path) -> Path:
    """A folder of topic files made from `folder`'s JSONL files; made once per content.

    Raises:
        InputError: no such folder, no JSONL in it, or a record without the needed texts (with its number).
    """
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder} holds no *.jsonl; expected a folder of <topic>.jsonl files with {choices(NEEDED)}.")
    made = cache_folder() / "data" / digest([(f.name, file_hash(f)) for f in files])[:24]
    made.mkdir(parents=True, exist_ok=True)
    for file in files:
        name = PREFIX + re.sub(r"[^a-z0-9_]+", "_", file.stem.lower()).strip("_")
        target = made / f"{name}.yaml"
        if not target.is_file():
            _convert(file, name, target)
        load_topic(target)
    return made


def _convert(file: Path, name: str, target: Path) -> None:
    items, seen = [], set()
    for number, row in enumerate(read_jsonl(file), 1):
        missing = [k for k in NEEDED if not isinstance(row.get(k), str) or not row[k].strip()]
        if missing:
            raise InputError(f"{file} record {number} lacks {choices(missing)}; expected texts {choices(NEEDED)}.")
        key = normalised(row["instruction"])
        if key in seen:
            continue
        seen.add(key)
        split = "measure" if len(items) % 3 == 2 else "train"
        items.append(
            {
                "id": f"{name}-{len(items) + 1:04d}",
                "split": split,
                "sub_issue": "all",
                "question": row["instruction"].strip(),
                "left": row["left"].strip(),
                "right": row["right"].strip(),
            }
        )
    beside = target.with_suffix(".items.jsonl")
    beside.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    target.write_text(
        f"class: !function {LM_EVAL_CLASS}\ntask: {GROUP}_{name}\ntopic: {name}\ntitle: {name}\n"
        f"context: as given\nlicence: as given\nitems: {beside.name}\n",
        encoding="utf-8",
    )
