"""A thousand damaged topic files: each loads to a topic that can be asked, or is one line that names the file."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from fuzz.damage import BOMB, Files, damaged

from harness.errors import InputError
from harness.lmeval.roots import packaged_root
from harness.probes import ROWS
from harness.topics import find_topics, is_topic_file, load_topic
from harness.topics.new import new_topic

CASES, BATCHES = 1000, 10


def packaged(folder: Path) -> Files:
    """A packaged topic cut to a few rows a list, with choices."""
    topic = find_topics([packaged_root()])["science"]
    train = topic.split("train")[0].id
    kept = {topic.split("measure")[0].id, topic.split("measure")[1].id, train}
    choice = {"id": "sci-c1", "sub_issue": "x", "question": "Which one?", "options": ["A", "B"], "values": [-1, 1]}
    files = {topic.path.name: topic.path.read_bytes() + b"choices: science.choices.jsonl\n"}
    for name in ("items", "statements", "prompts"):
        beside = topic.path.with_suffix(f".{name}.jsonl")
        held = [line for line in beside.read_bytes().split(b"\n") if line]
        held = [line for line in held if json.loads(line)["id"] in kept] if name == "items" else held[:3]
        files[beside.name] = b"".join(line + b"\n" for line in held)
    for name, row in {"choices": choice, "neutral": {"item": train, "text": "It depends."}}.items():
        files[f"science.{name}.jsonl"] = json.dumps(row).encode() + b"\n"
    return files


def template(folder: Path) -> Files:
    """What `stance topics new` writes."""
    path = new_topic("climate", folder / "template")
    return {path.name: path.read_bytes()}


def outcome(folder: Path, files: Files) -> str:
    """Write and load: the formats that can be asked, or how the file was refused."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    path = folder / next(iter(files))
    begun = time.perf_counter()
    is_topic_file(path)
    try:
        topic = load_topic(path)
    except InputError as error:
        said = str(error)
        assert str(folder) in said and "\n" not in said and said.isprintable() and len(said) < 4000, said[:4000]
        return "refused"
    finally:
        assert time.perf_counter() - begun < 3
    for kind in topic.formats:
        rows = ROWS[kind](topic)
        assert rows and json.dumps(rows, ensure_ascii=False).encode()
    return "loaded"


@pytest.mark.parametrize("batch", range(BATCHES))
def test_damaged_topics_load_or_are_refused_in_one_line(tmp_path: Path, batch: int) -> None:
    bases = [packaged(tmp_path), template(tmp_path)]
    outcomes: Counter[str] = Counter()
    for case in range(batch, CASES, BATCHES):
        chance = random.Random(case)
        files = damaged(chance.choice(bases), chance)
        try:
            outcomes[outcome(tmp_path / str(case), files)] += 1
        except (Exception, RecursionError) as error:
            raise AssertionError(f"case {case} in {tmp_path / str(case)}: {type(error).__name__}: {error}") from error
    # Damage that is always refused, or never, would show nothing.
    assert outcomes["refused"] >= 30 and outcomes["loaded"] >= 10, outcomes


def test_the_undamaged_files_load(tmp_path: Path) -> None:
    assert (
        outcome(tmp_path / "packaged", packaged(tmp_path)) == outcome(tmp_path / "new", template(tmp_path)) == "loaded"
    )


@pytest.mark.parametrize(
    "odd",
    [
        BOMB,
        "title: &a [*a]",
        "title: " + "[" * 100_000,
        "title: " + "{a: " * 50_000,
        "- " * 50_000,
        "title: 0x" + "f" * 100_000,
        "title: " + "9" * 100_000,
        "? !!str {=: items}\n: [1]",
        "title: !!python/object/apply:os.system [exit]",
    ],
    ids=lambda odd: odd[:24],
)
def test_bombs_and_depths_are_refused_at_once(tmp_path: Path, odd: str) -> None:
    files = template(tmp_path)
    text = files["climate.yaml"].decode().replace("title: Climate", odd)
    assert outcome(tmp_path / "case", {"climate.yaml": text.encode()}) == "refused"


@pytest.mark.parametrize(
    "odd", ["[" * 100_000, '{"id":' * 100_000, "[" * 900 + "]" * 900, "9" * 100_000], ids=lambda o: o[:8]
)
def test_deep_and_huge_json_is_refused_at_once(tmp_path: Path, odd: str) -> None:
    files = packaged(tmp_path)
    files["science.items.jsonl"] += b'{"id": "sci-x", "split": "measure", "question": ' + odd.encode() + b"}\n"
    assert outcome(tmp_path / "case", files) == "refused"


def test_a_folder_named_like_a_topic_and_a_dead_link_are_passed_over(tmp_path: Path) -> None:
    template(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "dead.yaml").symlink_to(tmp_path / "nowhere.yaml")
    assert list(find_topics([tmp_path])) == ["climate"]
