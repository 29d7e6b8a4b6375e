"""Other people's questions as topics: their texts are converted into topic files in the cache and never shipped.

| what | looks like | task |
| --- | --- | --- |
| IDEOINST folder (arXiv 2402.11725) | `<topic>.jsonl`: instruction, left, right | `ideoinst_<topic>` |
| statement list (Political Compass, IDRlabs) | `.txt`: `left: claim` or `right: claim` a line | `data_<file>_statements` |
| multiple choice (OpinionQA-like) | `.jsonl` or `.csv`: question, options, values | `data_<file>_choices` |
| paired prompts (even-handedness) | `.jsonl` or `.csv`: left, right (or prompt_a, prompt_b) | `data_<file>_open` |

What a file is, its keys say.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from harness.characters import LONGEST_NAME, visible
from harness.documents import inside, read_csv, read_jsonl, read_text
from harness.errors import InputError, choices
from harness.files import write_text
from harness.models import cache_folder
from harness.runs import digest, file_hash
from harness.sources import ideoinst, listed, multiple, paired
from harness.topics import LM_EVAL_CLASS, load_topic

KINDS = (
    "a folder of <topic>.jsonl with instruction, left and right; a .txt with one `left: claim` or `right: claim` a line; a "
    ".jsonl or .csv with question, options and values; or one with left and right (prompt_a and prompt_b)"
)
VERSION = 1  # of the conversion; a new one makes new files


def as_topics(data: Path) -> Path:
    """A folder of topic files made from `data`; made once per content.

    Raises:
        InputError: nothing there that can be read, or a record that lacks what its kind needs (with its number).
    """
    files = _files(data)
    if not files or not all(file.is_file() for file in files):
        raise InputError(f"{data} holds nothing to ask; expected {KINDS}.")
    made = cache_folder() / "data" / digest([VERSION, *((f.name, file_hash(f)) for f in files)])[:24]
    return convert(data, made)


def convert(data: Path, out: Path) -> Path:
    """Write the topic files of `data` into `out`, for `--topics-dir`, `lm_eval --include_path` or STANCE_TOPICS.

    Raises:
        InputError: as `as_topics`.
    """
    files = _files(data)
    out.mkdir(parents=True, exist_ok=True)
    for file in files:
        records = _records(file)
        topic = ideoinst.topic(file, records) if data.is_dir() else _single(file, records)
        target = out / f"{topic['topic']}.yaml"
        if not target.is_file():
            _write(topic, target)
        load_topic(target)
    if data.is_dir():
        group = f"class: !function {LM_EVAL_CLASS.replace('TopicGroup', 'AllTopics')}\ntask: {ideoinst.GROUP}\n"
        write_text(out / f"{ideoinst.GROUP}.yaml", group)
    return out


def _files(data: Path) -> list[Path]:
    return [inside(file, data) for file in sorted(data.glob("*.jsonl"))] if data.is_dir() else [data]


def _single(file: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    if file.suffix == ".txt":
        material = listed.material(file, records)
    elif "options" in records[0]:
        material = multiple.material(file, records)
    elif {"left", "right"} <= set(records[0]) or {"prompt_a", "prompt_b"} <= set(records[0]):
        material = paired.material(file, records)
    else:
        raise InputError(f"{file} has keys {choices(records[0])}; expected {KINDS}.")
    name = f"data_{plain_name(file)}"
    about = {
        "topic": name,
        "group": "data",
        "title": visible(file.stem)[:LONGEST_NAME],
        "context": "as given",
        "licence": "as given",
    }
    return {**about, **material}


def _records(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".jsonl":
        return read_jsonl(file)
    if file.suffix == ".txt":
        lines = enumerate(read_text(file).splitlines(), 1)
        return [{"number": n, "line": line.strip()} for n, line in lines if line.strip()]
    if file.suffix == ".csv" and (rows := read_csv(file)[0]):
        return list(rows)
    raise InputError(f"{file} holds no records; expected {KINDS}.")


def plain_name(file: Path) -> str:
    """A file's stem as a topic's name."""
    return re.sub(r"[^a-z0-9_]+", "_", file.stem.lower()).strip("_")[:48] or "unnamed"


def _write(topic: dict[str, Any], target: Path) -> None:
    """Long lists beside the YAML, as JSONL; JSON strings are YAML strings."""
    lines = [f"class: !function {LM_EVAL_CLASS}"]
    group, name = topic["group"], topic["topic"]
    lines.append(f"task: {name if name.startswith(f'{group}_') else f'{group}_{name}'}")
    for key, value in topic.items():
        if isinstance(value, list):
            beside = target.with_suffix(f".{key}.jsonl")
            write_text(beside, "".join(json.dumps(row) + "\n" for row in value))
            value = beside.name
        lines.append(f"{key}: {json.dumps(value)}")
    write_text(target, "\n".join(lines) + "\n")
