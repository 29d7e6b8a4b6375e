"""Strangers' files: what is too large, too deep, twice, half or a link is refused in one line, and nothing is run."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from harness import documents
from harness.characters import checked_file_name, checked_name, visible
from harness.errors import InputError
from harness.lmeval.roots import task_manager
from harness.sources import as_topics
from harness.topics import all_topics, load_topic
from harness.topics.new import new_topic

BOMB = "".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}' if n else 'x'] * 9)}]\n" for n in range(12))


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return path


def refused(call, *given) -> str:
    begun = time.perf_counter()
    with pytest.raises(InputError) as caught:
        call(*given)
    assert time.perf_counter() - begun < 2
    said = str(caught.value)
    assert said.isprintable() and len(said) < 1000
    return said


@pytest.mark.parametrize(
    "text, why",
    [
        (BOMB, "aliases"),
        ("a: &a [*a]", "aliases"),
        ("a: " + "[" * 100_000, "levels"),
        ("a: " + "{a: " * 65, "levels"),
        ("a: 1\na: 2", "stands twice"),
        ("a: !!python/object/apply:os.system [exit]", "constructor"),
        ("a: !!int x", "not readable YAML"),
        (b"a: \xff", "not text in UTF-8"),
        ("a: \x1b[2J", "control characters"),
        ("- a", "keys and values"),
        ("1: a", "keys and values"),
    ],
)
def test_yaml_that_is_no_plain_mapping_is_refused(tmp_path: Path, text: str | bytes, why: str) -> None:
    assert why in refused(documents.read_mapping, written(tmp_path / "a.yaml", text), "file")


def test_plain_yaml_is_read_as_ever(tmp_path: Path) -> None:
    text = "a: 1\nb: [x, 2.5, null, true]\nc: {d: 2020-01-01}\ne: !function os.system\nf: |\n  two\n  lines\n"
    read = documents.read_mapping(written(tmp_path / "a.yaml", "\ufeff" + text))
    assert read["a"] == 1 and read["b"] == ["x", 2.5, None, True] and read["e"] == "os.system"
    assert read["f"] == "two\nlines\n"
    assert documents.read_mapping(written(tmp_path / "b.yaml", "# nothing")) == {}


@pytest.mark.parametrize(
    "text, why",
    [
        ("[" * 100_000, "levels"),
        ("[" * 65 + "]" * 65, "levels"),
        ('{"a": 1, "a": 2}', "stands twice"),
        ('"\\ud800"', "half a character"),
        ("9" * 5000, "not readable JSON"),
        (b'"\xff"', "not readable JSON"),
        ("", "not readable JSON"),
    ],
)
def test_json_that_is_too_deep_twice_or_half_is_refused(tmp_path: Path, text: str | bytes, why: str) -> None:
    assert why in refused(documents.read_json, written(tmp_path / "a.json", text))


def test_pairs_of_surrogates_and_depths_within_the_bound_are_read(tmp_path: Path) -> None:
    assert documents.read_json(written(tmp_path / "a.json", '"\\ud83d\\ude00"')) == "\N{GRINNING FACE}"
    deep = "[" * 64 + "]" * 64
    assert json.dumps(documents.read_json(written(tmp_path / "b.json", deep))) == deep


def test_what_is_too_large_or_no_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(documents.MOST_BYTES + 1)
    assert "larger than 200 MB" in refused(documents.read_json, tmp_path / "large.json")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "none", tmp_path / "pipe", Path("/dev/zero"), tmp_path / ("x" * 300)):
        refused(documents.read_bytes, path)


def test_links_out_of_a_folder_are_refused_and_those_within_are_not(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "data"
    outside.mkdir()
    folder.mkdir()
    row = json.dumps({"instruction": "Why so?", "left": "l", "right": "r"}) + "\n"
    written(folder / "a.jsonl", row * 3)
    (folder / "b.jsonl").symlink_to(folder / "a.jsonl")
    assert documents.inside(folder / "b.jsonl", folder)
    (folder / "b.jsonl").unlink()
    (folder / "b.jsonl").symlink_to(written(outside / "secret.jsonl", row))
    assert "leads out of" in refused(as_topics, folder)
    topic = new_topic("climate", outside)
    (folder / "climate.yaml").symlink_to(topic)
    assert "leads out of" in refused(all_topics, [folder])
    text = topic.read_text()
    beside = written(folder / "own.yaml", text[: text.index("statements:\n")] + "statements: list.jsonl\n")
    (folder / "list.jsonl").symlink_to(outside / "secret.jsonl")
    assert "leads out of" in refused(load_topic, beside)


def test_a_module_beside_a_topic_is_never_run_in_place_of_ours(tmp_path: Path) -> None:
    """lm-eval would: it looks for the class a file names in the file's own folder first."""
    new_topic("climate", tmp_path)
    module = tmp_path / "harness" / "lmeval" / "tasks.py"
    module.parent.mkdir(parents=True)
    module.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n\n\nclass TopicGroup: ...\n")
    with pytest.raises(InputError, match="would run in place"):
        task_manager([tmp_path])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "task: political_stance_race_pairs\ndoc_to_text: !function evil.text\n",
        "task: evil\ndoc_to_text: '{{ cycler.__init__.__globals__.os.getcwd() }}'\n",
        "class: !function evil.Task\ntask: evil\n# harness.lmeval.tasks.TopicGroup\n",
        "class: !function harness.lmeval.tasks.AllTopics\ntask: evil\ninclude: other.yaml\n",
        "group: evil\ntask: [evil_a]\n",
        "include: ../other.yaml\n",
    ],
)
def test_a_task_file_that_may_run_code_is_refused_in_a_given_folder(tmp_path: Path, text: str) -> None:
    new_topic("climate", tmp_path)
    written(tmp_path / "evil.py", f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    written(tmp_path / "evil.yaml", text)
    with pytest.raises(InputError, match=r"evil\.yaml"):
        task_manager([tmp_path])
    assert not (tmp_path / "ran").exists()


def test_other_yaml_and_a_group_of_topics_may_stand_in_a_given_folder(tmp_path: Path) -> None:
    new_topic("climate", tmp_path)
    written(tmp_path / "study.yaml", "name: mine\ntrain: {topics: [climate]}\n")
    written(tmp_path / "group.yaml", "class: !function harness.lmeval.tasks.AllTopics\ntask: mine\n")
    assert "political_stance_climate" in task_manager([tmp_path]).all_tasks


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x1b[2Jb", "a\u202eb", "a\u200bb", "\ufeffa", "a" * 201, "\ud800"])
def test_names_that_do_not_show_as_what_they_are_are_refused(name: str) -> None:
    refused(checked_name, name, "a name")


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "a\\b", ".hidden", "..", "C:x", "a\x00"])
def test_names_of_folders_stay_where_they_are_put(name: str) -> None:
    refused(checked_file_name, name, "a name")


def test_ordinary_names_pass_and_texts_are_shown_with_escapes() -> None:
    for name in ("demo", "InhibitFT 5%", "Größe", "研究-1", "a.b", "\u0645\u06cc\u200c\u062e"):
        assert checked_file_name(name, "a name") == name
    text = "one\ntwo\tthree \N{WOMAN}\u200d\N{PERSONAL COMPUTER}\r\n"
    assert visible(text) == text
    assert visible("\x1b[31m\u202egnp.\u2066\ud800\r\x9b") == r"\x1b[31m\u202egnp.\u2066\ud800\x0d\x9b"
