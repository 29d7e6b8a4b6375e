"""The JSON schema of experiment files, for editors that complete and check keys while one is written.

One schema covers every study: `analysis` chooses which keys there are, and a mitigation's `use` which options. It is made
from the same pydantic models that read the files. What only reading can know - whether a topic exists, which keys exclude
each other - stays with `stance run FILE --dry-run`.

    stance run --schema > experiments/schema/experiment.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from harness.config import Experiment
from harness.registry import installed

DRAFT = "http://json-schema.org/draft-07/schema#"
PLAIN = "experiment"
ANALYSIS = "The study to carry out; left out, the whole method of docs/experiments.md."

Models = Mapping[str, type[BaseModel]]
Schema = dict[str, Any]


def schema(analyses: Models, mitigations: Models) -> Schema:
    """The schema of files of the plain experiment and of these analyses, with these mitigations' options."""
    definitions: Schema = {}
    for name, model in {PLAIN: Experiment, **analyses}.items():
        definitions |= _definitions(name, model)
        if name != PLAIN:
            definitions[name]["properties"] = {"analysis": {"const": name}, **definitions[name]["properties"]}
    for name, model in mitigations.items():
        definitions |= _definitions(f"mitigation-{name}", model)
    for definition in definitions.values():
        if {"use", "options"} <= definition.get("properties", {}).keys():
            _choose_options(definition, list(mitigations))
    studies = [_when("analysis", name, {"$ref": f"#/$defs/{name}"}) for name in analyses]
    plain = {"if": {"not": {"required": ["analysis"]}}, "then": {"$ref": f"#/$defs/{PLAIN}"}}
    return {
        "$schema": DRAFT,
        "title": "An experiment file of stance-harness",
        "type": "object",
        "required": ["name"],
        "properties": {"analysis": {"enum": list(analyses), "description": ANALYSIS}},
        "allOf": [*studies, plain],
        "$defs": definitions,
    }


def plugin_models(package: str | None = None) -> tuple[Models, Models]:
    """Settings of the installed analyses and the installed mitigations, by name; of one package, or of all.

    Raises:
        InputError: a plugin that cannot be loaded, or that is no analysis or mitigation.
    """
    from plugins import check

    def of(group: str) -> dict[str, Any]:
        return {p.name: check(p) for p in installed(group) if package in (None, p.package)}

    return {name: found.settings for name, found in of("analyses").items()}, of("mitigations")


def as_text(made: Schema) -> str:
    """The schema as it is written to a file."""
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _definitions(name: str, model: type[BaseModel]) -> Schema:
    """A model under its name, and what it holds under NAME-MODEL: two studies may each have a `TuneSettings`."""
    _, made = models_json_schema([(model, "validation")], ref_template=f"#/$defs/{name}-{{model}}")
    inner = {f"{name}-{key}": value for key, value in made["$defs"].items()}
    own = inner.pop(f"{name}-{model.__name__}")
    return {name: own, **inner}


def _choose_options(definition: Schema, mitigations: list[str]) -> None:
    """`use` names one of the mitigations, and `options` are that one's."""
    definition["properties"]["use"] = {"enum": mitigations}
    definition["allOf"] = [
        _when("use", name, {"properties": {"options": {"$ref": f"#/$defs/mitigation-{name}"}}}) for name in mitigations
    ]


def _when(key: str, value: str, then: Schema) -> Schema:
    return {"if": {"properties": {key: {"const": value}}, "required": [key]}, "then": then}
