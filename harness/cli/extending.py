"""`stance plugins`, and `stance localize plugin`: what other packages add (docs/plugins.md)."""

from __future__ import annotations

from typing import Any

import click

from harness.cli import answering, main
from harness.cli.training import localize, localize_with, localizing
from harness.errors import InputError


@main.command("plugins")
@answering("print_plugins")
def plugins_command() -> dict[str, Any]:
    """Installed localisers, interventions, mitigations and analyses, with the package each comes from.

    Every one is loaded; what is broken is listed with the reason. With --json also the entry points.

    \b
    Example:  stance plugins --json
    """
    return {"plugins": [_row(plugin) for plugin in _in_order()]}


def _in_order() -> list[Any]:
    """All plugins, the groups in the order of GROUPS and unknown ones last."""
    from harness.registry import GROUPS, installed

    return sorted(installed(), key=lambda p: GROUPS.index(p.group) if p.group in GROUPS else len(GROUPS))


def _row(plugin: Any) -> dict[str, str | None]:
    """What the listing says of one plugin; `error` says why it cannot be used."""
    from harness.interventions import BUILT_IN
    from harness.registry import find
    from plugins import check

    row = {key: getattr(plugin, key) for key in ("group", "name", "package", "version")}
    row |= {"entry_point": plugin.target, "summary": "", "error": None}
    try:
        row["summary"] = plugin.summary(check(plugin))
        find(plugin.group, plugin.name)
    except InputError as error:
        row["error"] = str(error)
    if plugin.group == "interventions" and plugin.name in BUILT_IN:
        row["error"] = f"Plugin {plugin} is never asked: {plugin.name} is built in; rename its entry point."
    return row


@localize.command("plugin")
@click.argument("name")
@localizing
@click.option("--option", "pairs", multiple=True, metavar="KEY=VALUE", help="Of the plugin's own; may be repeated.")
@answering("print_localization")
def plugin_command(name: str, pairs: tuple[str, ...], **given: Any) -> Any:
    """Any installed localiser by its NAME (`stance plugins` lists them).

    VALUE is read as YAML: a number, true or false, or text.

    \b
    Example:  stance localize plugin relative_shift --base A --tuned runs/tuned --option floor=0.1 --out runs/neurons
    """
    import yaml

    from harness.documents import UNREADABLE

    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier() or key in options:
            raise InputError(f"--option is {pair!r}; expected KEY=VALUE, every KEY once, such as floor=0.1.")
        try:
            options[key] = yaml.safe_load(value)
        except UNREADABLE:
            raise InputError(f"--option is {pair!r}; expected a VALUE that is YAML, such as floor=0.1.") from None
    return localize_with(name, **given, options=options)
