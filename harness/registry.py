"""Plugins are entry points of installed packages: which there are, whose they are, and loading one by name.

Groups are `stance_harness.localizers`, `.interventions`, `.mitigations` and `.analyses`; what each of them names is in
plugins/protocols.py. Every error names the package and the entry point, since it is somebody's package that has to change.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions
from typing import Any

from harness.characters import one_line
from harness.errors import InputError, choices

PREFIX = "stance_harness."
GROUPS = ("localizers", "interventions", "mitigations", "analyses")


@dataclass(frozen=True)
class Plugin:
    """One entry point. `target` is `module:attribute`; nothing is imported before `load`."""

    group: str
    name: str
    target: str
    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.name!r} of {self.group} (package {self.package} {self.version}, entry point {self.target})"

    def load(self) -> Any:
        """What the entry point names.

        Raises:
            InputError: its module cannot be imported, or holds no such attribute.
        """
        try:
            return EntryPoint(self.name, self.target, PREFIX + self.group).load()
        except Exception as error:  # whatever a module raises while it is imported
            reason = one_line(str(error))[:300]
            raise InputError(
                f"Plugin {self} cannot be loaded ({type(error).__name__}: {reason}); expected an attribute that imports. "
                f"Mend or update {self.package}, or uninstall it."
            ) from error

    def summary(self, loaded: Any) -> str:
        """First line of its docstring; of its module's where a plain value such as an `Analysis` has none of its own."""
        own = inspect.isroutine(loaded) or inspect.isclass(loaded)
        text = inspect.getdoc(loaded if own else sys.modules.get(self.target.partition(":")[0])) or ""
        return text.strip().partition("\n")[0]


def installed(group: str | None = None) -> list[Plugin]:
    """All plugins (of a group), by group, name and package. Groups that nothing reads are among them."""
    found: dict[str, list[Plugin]] = {}
    for distribution in distributions():
        package = distribution.metadata["Name"] or "unknown"
        entries = [e for e in distribution.entry_points if e.group.startswith(PREFIX)]
        made = [
            Plugin(e.group.removeprefix(PREFIX), e.name, e.value.split("[")[0].strip(), package, distribution.version)
            for e in entries
        ]
        # The first distribution of a name on the path is the one that imports find.
        found.setdefault(re.sub(r"[-_.]+", "-", package).lower(), made)
    plugins = [plugin for made in found.values() for plugin in made if group in (None, plugin.group)]
    return sorted(plugins, key=lambda p: (p.group, p.name, p.package))


def find(group: str, name: str) -> Plugin:
    """The one plugin of this group and name.

    Raises:
        InputError: there is none, or there are several.
    """
    known = installed(group)
    named = [plugin for plugin in known if plugin.name == name]
    if len(named) == 1:
        return named[0]
    if named:
        raise InputError(
            f"There are {len(named)} plugins {name!r} among {group}: {'; '.join(map(str, named))}. Which one is meant cannot "
            "be told: uninstall one of the packages, or rename its entry point."
        )
    raise InputError(
        f"There is no plugin {name!r} among {group}; installed: {choices({p.name for p in known})}. `stance plugins` lists "
        "them with their packages; docs/plugins.md says how to write one."
    )


def returned_wrong(plugin: Plugin, came: Any, expected: str) -> InputError:
    """The error for a plugin that gave something of another type than its protocol says."""
    return InputError(
        f"Plugin {plugin} gave {type(came).__name__}; expected {expected} (see plugins/protocols.py and docs/plugins.md). "
        f"Mend or update {plugin.package}."
    )
