"""The culture items as data: well-formed, balanced, and ready for a country-copying control."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from harness.lmeval.roots import packaged_root

FOLDER = packaged_root() / "culture"
COUNTRIES = sorted(FOLDER.glob("*.jsonl"))
CONTROLS = sorted((FOLDER / "controls").glob("*.jsonl"))


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


NAMES = [rows(path)[0]["country"] for path in COUNTRIES]


@pytest.mark.parametrize("path", [*COUNTRIES, *CONTROLS], ids=lambda p: p.stem)
def test_every_item_has_one_answer_among_options_that_differ(path):
    items = rows(path)
    assert len({item["id"] for item in items}) == len({item["question"] for item in items}) == len(items)
    for item in items:
        assert set(item) - {"country"} == {"id", "field", "question", "options", "answer"}
        assert len(set(item["options"])) == len(item["options"]) > item["answer"] >= 0
        assert item["question"].strip() and all(option.strip() for option in item["options"])


@pytest.mark.parametrize("path", CONTROLS, ids=lambda p: p.stem)
def test_controls_are_balanced_and_about_no_country(path):
    items = rows(path)
    places = Counter(item["answer"] for item in items)
    assert len(items) >= 40 and max(places.values()) - min(places.values()) <= 1
    assert not any("country" in item or name in item["question"] for item in items for name in NAMES)


def test_there_are_enough_countries_and_controls():
    assert len(COUNTRIES) >= 8 and len(CONTROLS) == 3


@pytest.mark.parametrize("path", COUNTRIES, ids=lambda p: p.stem)
def test_a_country_has_enough_items_and_its_name_can_be_swapped(path):
    items = rows(path)
    assert len(items) >= 30 and {item["country"] for item in items} == {items[0]["country"]}
    assert max(Counter(item["answer"] for item in items).values()) <= len(items) / 4 + 1
    for item in items:
        assert [item["question"].count(name) for name in NAMES] == [int(name == item["country"]) for name in NAMES]
        assert not any(name in option for name in NAMES for option in item["options"])
    longest = sum(
        len(item["options"][item["answer"]]) > max(len(o) for n, o in enumerate(item["options"]) if n != item["answer"])
        for item in items
    )
    assert longest < len(items) / 2
