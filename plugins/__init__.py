"""One file per published method. A plugin is a function of one of these shapes, declared as an entry point.

| entry-point group | shape | finds or does |
| --- | --- | --- |
| stance_harness.localizers | `Localizer` | which neurons carry a shift |
| stance_harness.mitigations | `Mitigation` | which neurons a second fine-tune holds |
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, Protocol

from harness.errors import InputError, choices
from harness.neurons import Neurons


class Mitigation(Protocol):
    """(general neurons, share of them, seed) -> the neurons to hold while training again from the base."""

    def __call__(self, general: Neurons, share: float, seed: int) -> Neurons: ...


def load(group: str, name: str) -> Any:
    """A plugin by name, from this or any installed package.

    Raises:
        InputError: no plugin of that name.
    """
    found = {entry.name: entry for entry in entry_points(group=f"stance_harness.{group}")}
    if name not in found:
        raise InputError(f"There is no plugin {name!r} among {group}; installed: {choices(found)}.")
    return found[name].load()


def mitigation(name: str) -> Mitigation:
    """A mitigation by name (see `load`)."""
    return load("mitigations", name)
