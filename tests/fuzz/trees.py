"""Inputs drawn by hypothesis from valid files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import yaml
from fuzz.damage import Files, damaged, grafted
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from harness.documents import UNREADABLE

# Every character there is, halves of pairs among them.
TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=40)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from([2**63, -(10**400), 1e308])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)


def drawn(seeds: list[Files], inputs: int, seed: int, attempt: Callable[[Files], str]) -> None:
    """Attempt so many inputs: a third damaged at random, the others with drawn values in the place of some."""
    left = inputs

    @seeded(seed)
    @settings(max_examples=inputs, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(seeds), st.integers(0, 2**32), st.integers(0, 2), VALUES, st.binary(max_size=60))
    def one(files: Files, number: int, way: int, value: object, raw: bytes) -> None:
        nonlocal left
        if left > 0:
            left -= 1
            attempt(_made(files, random.Random(number), way, value, raw))

    while left > 0:  # hypothesis stops early where it believes to have drawn everything
        before = left
        one()
        if left == before:
            break


def _made(files: Files, chance: random.Random, way: int, value: object, raw: bytes) -> Files:
    if way == 0:
        return damaged(files, chance)
    name = chance.choice(list(files))
    data, kind = files[name], name.rpartition(".")[2]
    try:
        if kind == "json":
            data = json.dumps(grafted(json.loads(data), chance, value)).encode("utf-8", "surrogatepass")
        elif kind == "jsonl":
            lines = data.rstrip(b"\n").split(b"\n")
            at = chance.randrange(len(lines))
            lines[at] = json.dumps(grafted(json.loads(lines[at]), chance, value)).encode("utf-8", "surrogatepass")
            data = b"\n".join(lines) + b"\n"
        elif kind == "yaml":
            tree = grafted(yaml.load(data, _Named), chance, value)
            data = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
            data = data.replace(b"class: harness", b"class: !function harness")
        else:
            at = chance.randrange(len(data) + 1)
            data = data[:at] + raw + data[at + chance.choice([0, len(raw), 8]) :]
    except UNREADABLE:
        data = raw
    return {**files, name: data}


class _Named(yaml.SafeLoader):
    """Takes `!function NAME` as the text NAME."""


_Named.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
