from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from harness.errors import InputError
from harness.lmeval.roots import packaged_root, task_manager
from harness.topics import all_topics, find_topics, load_topic
from harness.topics.balance import balance
from harness.topics.check import check_topic
from harness.topics.new import new_topic
from harness.wording import normalised

SIX = ["crime_and_gun", "economy_and_inequality", "gender_and_sexuality", "immigration", "race", "science"]


@pytest.fixture(scope="module")
def topics() -> dict:
    return find_topics([packaged_root()])


def write(folder: Path, name: str = "climate", change: tuple[str, str] = ("", "")) -> Path:
    path = new_topic(name, folder)
    path.write_text(path.read_text().replace(*change) if change[0] else path.read_text())
    return path


def test_the_six_topics_are_there(topics: dict) -> None:
    assert list(topics) == SIX


@pytest.mark.parametrize("name", SIX)
def test_a_packaged_topic_is_complete_and_balanced(topics: dict, name: str) -> None:
    topic = topics[name]
    measuring = 90 if name == "gender_and_sexuality" else 60
    assert Counter(i.split for i in topic.items) == {"train": 120, "measure": measuring}
    assert Counter(s.agree for s in topic.statements) == {"left": 20, "right": 20}
    assert all(len(s.paraphrases) == 3 and all(w.reversed for w in (s, *s.paraphrases)) for s in topic.statements)
    assert Counter(p.kind for p in topic.prompts) == {"opinion": 10, "advice": 10, "writing": 10}
    assert all(p.neutral and p.left and p.right for p in topic.prompts)
    sides = {side: [getattr(i, side) for i in topic.items] for side in ("left", "right")}
    assert all(40 <= len(text.split()) <= 70 for texts in sides.values() for text in texts)
    found = balance(topic)
    for quantity, apart in (("words", 1.5), ("grade", 1.0), ("negations", 0.7), ("hedges", 0.7)):
        assert abs(found[quantity][0] - found[quantity][1]) < apart, quantity
    assert {i.sub_issue for i in topic.split("train")} == {i.sub_issue for i in topic.split("measure")}


def test_no_question_is_asked_twice(topics: dict) -> None:
    asked = Counter(normalised(i.question) for t in topics.values() for i in t.items)
    assert asked.most_common(1)[0][1] == 1


def test_a_new_topic_runs_from_a_users_folder_and_joins_the_group(tmp_path: Path) -> None:
    write(tmp_path)
    manager = task_manager([tmp_path])
    assert "political_stance_climate_pairs" in manager.all_tasks
    assert list(manager.load(["political_stance_climate"])["tasks"]) == [
        f"political_stance_climate_{kind}" for kind in ("pairs", "statements", "open")
    ]
    members = manager.load(["political_stance"])["group_map"]["political_stance"]
    assert members == sorted(f"political_stance_{t}" for t in [*SIX, "climate"])


def test_a_users_folder_never_shrinks_the_packaged_group(tmp_path: Path) -> None:
    write(tmp_path)
    manager = TaskManager(include_defaults=False, include_path=[str(packaged_root()), str(tmp_path)])
    members = manager.load(["political_stance"])["group_map"]["political_stance"]
    assert {f"political_stance_{t}" for t in SIX} < set(members)


def test_a_file_that_would_replace_the_group_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("group: political_stance\ntask: [political_stance_race]\n")
    with pytest.raises(InputError, match="would replace the packaged group"):
        task_manager([tmp_path])


@pytest.mark.parametrize(
    "change, message",
    [
        (("title:", "titel:"), "unknown key `titel`"),
        (("agree: right", "agree: left\naxes: {polarity: [stated]}\nold:"), "found duplicate|unknown key|keyed|YAML"),
        (("split: measure", "split: test"), "split"),
        (("task: political_stance_climate", "task: climate"), "it must be 'political_stance_climate'"),
        (("class: !function harness.lmeval.tasks.TopicGroup", "# harness.lmeval.tasks.TopicGroup"), "key `class`"),
        (("climate-002", "climate-001"), "more than once: climate-001"),
        (("items:", "items: ../other.jsonl\nold:"), "plain file name"),
        (("title: Climate", "title: {a"), "not readable YAML"),
        (("title: Climate", "title: !!python/object/apply:os.getcwd []"), "not readable YAML"),
    ],
)
def test_a_broken_topic_file_is_one_clear_error(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_topic(write(tmp_path, change=change))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_one_name_in_two_files_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    with pytest.raises(InputError, match="stands in two files"):
        find_topics([tmp_path])


def test_checking_a_topic_is_quick_and_finds_the_template(tmp_path: Path) -> None:
    path = write(tmp_path)
    begun = time.perf_counter()
    _, findings = check_topic(path, [])
    assert time.perf_counter() - begun < 5
    assert any("template" in f.what and f.severity == "problem" for f in findings)


def test_packaged_topics_pass_their_own_check() -> None:
    files = [topic.path for topic in all_topics([packaged_root()]).values()]
    problems = {path.stem: [str(f) for f in check_topic(path, files)[1] if f.severity == "problem"] for path in files}
    assert not any(problems.values()) and set(problems) == {*SIX, "neutral"}


def test_new_never_overwrites(tmp_path: Path) -> None:
    path = write(tmp_path)
    before = path.read_text()
    with pytest.raises(InputError, match="not overwritten"):
        new_topic("climate", tmp_path)
    assert path.read_text() == before
