"""The packaged experiment files say what their studies understand, and every method has its page."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.analysis import read_settings, read_yaml
from harness.config import load_experiment
from plugins import load

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_file_is_valid(path: Path) -> None:
    raw = read_yaml(path)
    named = raw.get("analysis")
    settings = read_settings(raw, path, load("analyses", named).settings) if named else load_experiment(path)
    assert settings.name == path.stem


@pytest.mark.parametrize("name", ["culnig", "inhibitft", "knobe", "localizers", "mitigations", "neuronlens", "pnlac"])
def test_a_method_has_a_page_that_says_what_was_measured(name: str) -> None:
    text = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8").lower()
    assert all(part in text for part in ("what we measured", "when it does nothing", "stance "))
