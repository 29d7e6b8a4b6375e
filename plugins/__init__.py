"""One file per published method. A plugin is an entry point whose value has one of the types of plugins/protocols.py:
`Localizer`, `Intervention`, `Mitigation` or `Analysis`. Other packages' plugins are found the same way as these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from harness.errors import InputError
from harness.mitigation import Mitigation, configured
from harness.registry import Plugin, find, returned_wrong

PROTOCOLS = ("Analysis", "AnalysisSettings", "Intervention", "Localization", "Localizer", "Op", "Sequence")


def __getattr__(name: str) -> Any:
    """The types of plugins/protocols.py, imported when one is asked for: most commands need none of them."""
    if name in PROTOCOLS:
        return getattr(import_module("plugins.protocols"), name)
    raise AttributeError(f"module 'plugins' has no attribute {name!r}")


def _is_analysis(value: Any) -> bool:
    from harness.analysis import Analysis

    return isinstance(value, Analysis)


# Group -> what its entry points must name, in words and as a test.
EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "localizers": ("a function of base, tuned, prompts, site and model that returns plugins.Localization", callable),
    "interventions": ("a function of the text behind `=` that returns harness.interventions.Op", callable),
    "mitigations": (
        "a subclass of harness.mitigation.Mitigation",
        lambda value: isinstance(value, type) and issubclass(value, Mitigation),
    ),
    "analyses": ("a value of type harness.analysis.Analysis", _is_analysis),
}


def check(plugin: Plugin) -> Any:
    """What a plugin's entry point names.

    Raises:
        InputError: a group that nothing reads, what cannot be loaded, or a value of another type than its group's.
    """
    if plugin.group not in EXPECTED:
        raise InputError(
            f"Plugin {plugin} is of a group that nothing reads; the groups are "
            f"{', '.join(f'stance_harness.{group}' for group in EXPECTED)}."
        )
    loaded = plugin.load()
    words, fits = EXPECTED[plugin.group]
    if not fits(loaded):
        raise returned_wrong(plugin, loaded, words)
    return loaded


def load(group: str, name: str) -> Any:
    """A plugin by name, from this or any installed package.

    Raises:
        InputError: no plugin of that name, several, or one that `check` refuses.
    """
    return check(find(group, name))


def mitigation(name: str, options: Mapping[str, Any] | None = None) -> Mitigation:
    """A mitigation by name, with its options (see harness/mitigation.py).

    Raises:
        InputError: no plugin of that name, or options that it does not take.
    """
    return configured(load("mitigations", name), options or {}, name)
