"""The JSON schema of experiment files: the committed one is what the code makes, and editors are told what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft7Validator

from harness.analysis import read_yaml
from harness.cli import main
from harness.schema import as_text, plugin_models, schema

ROOT = Path(__file__).parent.parent / "experiments"
FILE = ROOT / "schema" / "experiment.json"
FILES = sorted(ROOT.glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    made = json.loads(FILE.read_text(encoding="utf-8"))
    Draft7Validator.check_schema(made)
    return Draft7Validator(made)


def changed(name: str, path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A packaged file's keys with one of them set."""
    raw = read_yaml(ROOT / f"{name}.yaml")
    at: Any = raw
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    return raw


def test_the_committed_schema_is_what_the_code_makes():
    made = as_text(schema(*plugin_models("stance-harness")))
    assert FILE.read_text(encoding="utf-8") == made, "run `stance run --schema > experiments/schema/experiment.json`"


def test_the_command_prints_a_schema_of_every_installed_study():
    result = CliRunner().invoke(main, ["run", "--schema"], catch_exceptions=False)
    assert result.exit_code == 0
    assert {"culnig", "knobe", "mitigations", "experiment"} <= json.loads(result.output)["$defs"].keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_packaged_file_is_valid_and_names_the_schema(path: Path, validator: Draft7Validator):
    assert [error.message for error in validator.iter_errors(read_yaml(path))] == []
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema/experiment.json\n")


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("demo", ("measured",), {}),
        ("demo", ("train", "recipe", "epoch"), 1),
        ("demo", ("measure", "engine"), "vlm"),
        ("demo", ("train", "topics"), []),
        ("demo", ("analysis",), "pareto"),
        ("culnig", ("localize",), {}),
        ("knobe", ("sweep", "sites"), ["resid"]),
        ("knobe", ("trials",), 1),
        ("localizers", ("patch", "share"), [0.1]),
        ("neuronlens", ("masks",), []),
        ("mitigations", ("mitigations", 0, "use"), "inhibit"),
        ("mitigations", ("mitigations", 0, "options"), {"weight": 1.0}),  # an option of another mitigation
        ("mitigations", ("train", "side"), "right"),  # a key of the plain experiment
    ],
)
def test_a_wrong_key_or_value_fails(name: str, path: tuple[Any, ...], value: Any, validator: Draft7Validator):
    assert not validator.is_valid(changed(name, path, value))


def test_every_key_that_the_settings_know_is_offered(validator: Draft7Validator):
    definitions: Any = validator.schema
    recipe = definitions["$defs"]["experiment-Recipe"]["properties"]
    assert {"mode", "epochs", "rank", "only", "precision"} <= recipe.keys()
    assert recipe["mode"]["enum"] == ["lora", "full"]
    assert "analysis" in definitions["$defs"]["knobe"]["properties"]
    assert "analysis" not in definitions["$defs"]["experiment"]["properties"]
