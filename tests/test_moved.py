from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_report import OPTIONS, TOPICS, example

from harness.cli import main
from harness.errors import InputError
from harness.moved import moved_most
from harness.report import write_report
from harness.sharing import Shared, read_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison in which one item of race moved most, in one of its two variants."""
    comparison = example()
    samples = comparison.samples
    pairs = samples["format"] == "pairs"
    samples.loc[pairs, "value"] = 0.1
    chosen = pairs & (samples["item"] == "race-003")
    samples.loc[chosen & (samples["run"] == "plain"), "value"] = -0.9
    samples.loc[pairs & (samples["item"] == "science-000") & (samples["run"] == "plain"), "value"] = 0.4
    samples.loc[pairs & (samples["item"] == "science-006") & (samples["run"] == "base-again"), "value"] = 0.15
    return write_report(comparison, tmp_path_factory.mktemp("moved")).parent


@pytest.fixture(scope="module")
def shared(folder: Path) -> Shared:
    return read_folder(folder)


def test_the_largest_changes_come_first_with_question_answers_and_the_noise(shared: Shared) -> None:
    found = moved_most(shared, None, None, (), 2)
    assert (found.run, found.reference, found.format, found.noise) == ("plain", "base", "pairs", pytest.approx(0.05))
    first, second = found.items.to_dict("records")
    assert (first["topic"], first["item"], second["item"]) == ("race", "race-003", "science-000")
    assert [first[key] for key in ("before", "after", "change")] == pytest.approx([0.1, -0.9, -1.0])
    assert second["change"] == pytest.approx(0.3)
    assert "race" in first["prompt"] and json.loads(first["options"]) == OPTIONS
    assert first["answer_after"].startswith("left ")


def test_topic_format_and_run_narrow_it(shared: Shared) -> None:
    assert set(moved_most(shared, "patched", "open", ("race", "science"), 50).items["topic"]) <= {"race", "science"}
    assert moved_most(shared, None, None, ("science",), 1).items["item"].tolist() == ["science-000"]


@pytest.mark.parametrize(
    "given, words",
    [
        ({"run": "nobody"}, "There is no run"),
        ({"run": "base"}, "what others are compared with"),
        ({"kind": "pears"}, "Nothing with format"),
        ({"topics": ("rice",)}, "Nothing with topic"),
        ({"count": 0}, "expected at least 1"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(shared: Shared, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        moved_most(shared, **{"run": None, "kind": None, "topics": (), "count": 3, **given})


def test_the_command_prints_it_and_gives_it_as_json(folder: Path) -> None:
    said = CliRunner().invoke(main, ["moved", str(folder), "--top", "1"])
    assert said.exit_code == 0 and "1. race, race-003: +0.100 -> -0.900 (-1.000)" in said.output
    assert all(text in said.output for text in (*OPTIONS, "two measurements of the base: 0.050"))
    read = json.loads(CliRunner().invoke(main, ["moved", str(folder), "--json"]).stdout)
    assert len(read["items"]) == 10 and read["items"][0]["item"] == "race-003"
    assert {item["topic"] for item in read["items"]} <= set(TOPICS)
