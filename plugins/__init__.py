"""One file per published method. A plugin is a function of one of these shapes, declared as an entry point.

| entry-point group | shape | finds or does |
| --- | --- | --- |
| stance_harness.localizers | `Localizer` | which neurons carry a shift |
| stance_harness.mitigations | `Mitigation` (harness/mitigation.py) | another way to give the same fine-tune |
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from harness.errors import InputError, choices
from harness.mitigation import Mitigation, configured


def load(group: str, name: str) -> Any:
    """A plugin by name, from this or any installed package.

    Raises:
        InputError: no plugin of that name.
    """
    found = {entry.name: entry for entry in entry_points(group=f"stance_harness.{group}")}
    if name not in found:
        raise InputError(f"There is no plugin {name!r} among {group}; installed: {choices(found)}.")
    return found[name].load()


def mitigation(name: str, options: Mapping[str, Any] | None = None) -> Mitigation:
    """A mitigation by name, with its options (see harness/mitigation.py).

    Raises:
        InputError: no plugin of that name, or options that it does not take.
    """
    return configured(load("mitigations", name), options or {}, name)
