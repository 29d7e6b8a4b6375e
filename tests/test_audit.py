"""The audit of the lock files: what it does when pip-audit finds something, nothing, or nobody."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / "requirements" / "audit.py"


@pytest.fixture
def audit():
    spec = importlib.util.spec_from_file_location("requirements_audit", FILE)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def answering(folder: Path, text: str, status: int = 0, error: str = "") -> list[str]:
    """A command that answers as pip-audit would."""
    script = folder / "fake.py"
    script.write_text(f"import sys\nprint({text!r})\nprint({error!r}, file=sys.stderr)\nsys.exit({status})\n")
    return [sys.executable, str(script)]


def report(*vulnerable: str) -> str:
    vulns = [{"id": name, "aliases": ["CVE-1"], "fix_versions": ["2.1"], "description": "x"} for name in vulnerable]
    held = [{"name": "a", "version": "1.0", "vulns": []}, {"name": "b", "version": "2.0", "vulns": vulns}]
    return json.dumps({"dependencies": held, "fixes": []})


def test_the_locked_files_are_those_that_there_are(audit) -> None:
    assert {FILE.parent / name for name in audit.FILES} == set(FILE.parent.glob("*.txt")) - {
        FILE.parent / "exclude.txt"
    }


def test_nothing_known_passes(audit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.audit([FILE.parent / "cpu.txt"], answering(tmp_path, report())) == 0
    assert capsys.readouterr().out == "audited: cpu.txt\n"


def test_a_known_vulnerability_fails_and_is_named(audit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = answering(tmp_path, report("PYSEC-7"), status=1)
    assert audit.audit([FILE.parent / "cpu.txt", FILE.parent / "gpu.txt"], command) == 1
    assert capsys.readouterr().out.count("vulnerable: b 2.0: PYSEC-7, CVE-1; mended in 2.1") == 1


def test_one_that_is_explained_passes_and_an_explanation_too_many_is_said(
    audit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit.IGNORED.update({"CVE-1": "not reached", "CVE-2": "gone"})
    assert audit.audit([FILE.parent / "cpu.txt"], answering(tmp_path, report("PYSEC-7"), status=1)) == 0
    assert "no longer needed in IGNORED of requirements/audit.py: CVE-2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, status, error, why",
    [
        ("", 1, "Traceback\nConnectionError: no route", "ConnectionError: no route"),
        ("", 0, "", "no answer"),
        ("[]", 0, "", ""),
        ('{"dependencies": [{"name": "a", "skip_reason": "not found"}]}', 0, "", "cannot be reached"),
    ],
)
def test_without_an_answer_it_says_so_and_does_not_fail(
    audit, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, status: int, error: str, why: str
) -> None:
    assert audit.audit([FILE.parent / "cpu.txt"], answering(tmp_path, text, status, error)) == 0
    said = capsys.readouterr().out
    assert said.startswith("not audited: cpu.txt") and why in said


def test_packages_that_were_skipped_are_named(audit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skipped = {"dependencies": [{"name": "a", "skip_reason": "not found"}, {"name": "b", "version": "1", "vulns": []}]}
    assert audit.audit([FILE.parent / "cpu.txt"], answering(tmp_path, json.dumps(skipped))) == 0
    assert capsys.readouterr().out == "not audited: a of cpu.txt\naudited: cpu.txt\n"


def test_a_missing_pip_audit_is_said(audit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.audit([FILE.parent / "cpu.txt"], [str(tmp_path / "none")]) == 0
    assert "not audited" in capsys.readouterr().out
