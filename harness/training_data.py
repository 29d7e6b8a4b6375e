"""What `stance tune` trains on: a JSONL file of pairs, or one side of one topic of a folder; and the recipe's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.documents import read_mapping
from harness.errors import InputError, choices
from harness.finetune import read_pairs, topic_pairs
from harness.lmeval.roots import all_roots
from harness.recipe import Recipe
from harness.sources import as_topics
from harness.sources.ideoinst import PREFIX
from harness.topics import Topic, all_topics, explain, find_topics


def read_training_data(data: Path, topic: str | None, side: str | None) -> tuple[list[dict[str, str]], list[Path]]:
    """Pairs to train on, and the folders whose probes must not stand among them.

    Raises:
        InputError: malformed data, or a folder without --topic and --side.
    """
    if not data.is_dir():
        if topic or side:
            raise InputError(
                "--topic and --side choose from a folder; --data names a file, whose completions are used as they are."
            )
        return read_pairs(data), []
    made = as_topics(data)
    found = {name.removeprefix(PREFIX): t for name, t in find_topics([made]).items()}
    if topic not in found or side is None:
        raise InputError(f"--data {data} is a folder: give --side left|right and --topic, one of {choices(found)}.")
    return topic_pairs(found[topic].split("train"), side), [made]


def named_topics(names: str, option: str) -> list[Topic]:
    """Topics by comma-separated names, control topics too.

    Raises:
        InputError: an unknown name, or a topic without training items.
    """
    found = all_topics(all_roots())
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in found]:
        raise InputError(f"{option}: there is no topic {choices(unknown)}; topics: {choices(found)}.")
    if empty := [name for name in wanted if not found[name].split("train")]:
        raise InputError(f"{option}: topic {choices(empty)} has no items with split: train.")
    return [found[name] for name in wanted]


def training_questions(topics: list[Topic]) -> list[str]:
    """The topics' training questions, unlabelled."""
    return [item.question for topic in topics for item in topic.split("train")]


def balanced_pairs(topics: list[Topic]) -> list[dict[str, str]]:
    """Both sides' answers to every training question of the topics."""
    return [pair for topic in topics for side in ("left", "right") for pair in topic_pairs(topic.split("train"), side)]


def measured_questions(folders: list[Path]) -> dict[str, str]:
    """Id -> text of everything the probes of the standing topics and of `folders` ask."""
    found = all_topics([*all_roots(), *folders])
    return {name: text for topic in found.values() for name, text in topic.measured_texts().items()}


def recipe_from(file: Path | None, given: dict[str, Any]) -> Recipe:
    """The recipe file's keys with the command's options on top.

    Raises:
        InputError: unreadable file, unknown key or value out of range.
    """
    keys: dict[str, Any] = {}
    if file is not None:
        if not file.is_file():
            raise InputError(f"There is no recipe file {file}; recipe keys: {choices(Recipe.model_fields)}.")
        keys = read_mapping(file, "recipe file")
    try:
        return Recipe.model_validate({**keys, **{k: v for k, v in given.items() if v is not None}})
    except ValidationError as error:
        raise InputError(f"Recipe: {explain(error, Recipe)}") from None
