"""`stance plugins`, and `stance localize plugin`: what other packages add (docs/plugins.md)."""

from __future__ import annotations

from typing import Any

import click

from harness.cli import main
from harness.cli.training import localize, localize_with, localizing
from harness.errors import InputError


@main.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with entry points and errors.")
def plugins_command(as_json: bool) -> None:
    """Installed localisers, interventions, mitigations and analyses, with the package each comes from.

    Every one is loaded; what is broken is listed with the reason.

    \b
    Example:  stance plugins --json
    """
    import json

    from rich.table import Table
    from rich.text import Text

    from harness.registry import GROUPS
    from harness.terminal import console

    rows = [_row(plugin) for plugin in _in_order()]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for group in dict.fromkeys([*GROUPS, *(str(row["group"]) for row in rows)]):
        table = Table("name", "package", "version", "what it is", title=group, title_justify="left")
        for row in rows:
            if row["group"] == group:
                said = row["summary"] if row["error"] is None else "broken, see below"
                table.add_row(*(Text(str(cell)) for cell in (row["name"], row["package"], row["version"], said)))
        console.print(table if table.row_count else f"{group}: none installed", markup=False)
    for row in rows:
        if row["error"] is not None:
            console.print(f"Broken: {row['error']}", highlight=False, markup=False, soft_wrap=True)


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
def plugin_command(name: str, pairs: tuple[str, ...], **given: Any) -> None:
    """Any installed localiser by its NAME (`stance plugins` lists them).

    VALUE is read as YAML: a number, true or false, or text.

    \b
    Example:  stance localize plugin relative_shift --base A --tuned runs/tuned --option floor=0.1 --out runs/neurons
    """
    import yaml

    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier() or key in options:
            raise InputError(f"--option is {pair!r}; expected KEY=VALUE, every KEY once, such as floor=0.1.")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--option is {pair!r}; expected a VALUE that is YAML, such as floor=0.1.") from None
    localize_with(name, **given, options=options)
