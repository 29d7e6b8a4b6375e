"""The installed package: what stock lm-eval sees of it, what its start-up hook costs, what a wheel holds."""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InputError
from harness.lmeval.roots import all_roots, packaged_root, task_manager
from harness.topics import GROUP, LM_EVAL_CLASS, find_topics
from harness.topics.new import TEMPLATE

ROOT = Path(__file__).resolve().parent.parent
TOPICS = ("crime_and_gun", "economy_and_inequality", "gender_and_sexuality", "immigration", "race", "science")
PACKAGED = {f"{GROUP}_{topic}" for topic in TOPICS}
HOOK = "_stance_harness_startup"

LISTING = f"""
import json, sys
from lm_eval.tasks import TaskManager

def members(manager):
    return sorted(child.name for child in manager.load([{GROUP!r}])["groups"][{GROUP!r}])

plain = TaskManager()
listed = [name for name in plain.all_tasks if name.startswith(({GROUP!r}, "neutral"))]
print(json.dumps([listed, members(plain), members(TaskManager(include_path=sys.argv[1]))]))
"""
# Run with -I -S: no .pth file is followed, so the editable checkout is out of sight until a folder is added by hand.
WHEEL_ONLY = """
import json, site, sys
site.addsitedir(sys.argv[1])
sys.path.append(sys.argv[2])
import harness
from lm_eval.tasks.manager import TaskManager
from harness.lmeval.roots import packaged_root, standing_roots
from harness.topics import find_topics
roots = standing_roots()
hooked = hasattr(TaskManager.__init__, "__wrapped__")
print(json.dumps([harness.__file__, str(packaged_root()), list(find_topics(roots)), hooked]))
"""
WITHOUT_HARNESS = """
import importlib.util, sys
sys.path[:0] = sys.argv[1:]
import _stance_harness_startup
from lm_eval.tasks.manager import TaskManager
assert importlib.util.find_spec("harness") is None, "the harness is not hidden"
assert not hasattr(TaskManager.__init__, "__wrapped__")
TaskManager(include_defaults=False)
print("lm_eval works")
"""


def python(*args: Any, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "STANCE_TOPICS")}
    command = [sys.executable, *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**inherited, **env}, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def members(manager: Any) -> set[str]:
    return {child.name for child in manager.load([GROUP])["groups"][GROUP]}


def write_topic(folder: Path, name: str = "climate", **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = TEMPLATE.format(name=name, title=name.title(), cls=LM_EVAL_CLASS)
    for old, new in changes.items():
        text = re.sub(rf"^{old}:", f"{new}:", text, flags=re.MULTILINE)
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Stock lm-eval in another folder: task names, members of the group, members with a user's folder as well."""
    folder = tmp_path_factory.mktemp("elsewhere")
    write_topic(folder / "mine")
    return json.loads(python("-c", LISTING, folder / "mine", cwd=folder).stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return next(folder.glob("stance_harness-*.whl"))


def test_stock_lm_eval_lists_every_topic_and_format(listing: list[list[str]]) -> None:
    ours = {*PACKAGED, "neutral"}
    expected = {
        GROUP,
        "neutral_text",
        *ours,
        *(f"{name}_{kind}" for name in ours for kind in ("pairs", "statements", "open")),
    }
    assert set(listing[0]) == expected
    assert set(listing[1]) == PACKAGED


def test_lm_evals_own_models_stay_beside_ours(tmp_path: Path) -> None:
    asked = """
import lm_eval.tasks.manager
from lm_eval.api.registry import get_model
print(get_model("hf").__name__, get_model("dummy").__name__)
from lm_eval.api.registry import model_registry
print("stance-vllm" in model_registry, "vllm" in model_registry)
"""
    lines = python("-c", asked, cwd=tmp_path).stdout.splitlines()
    assert lines[-2:] == ["HFLM DummyLM", "True True"]


def test_include_path_adds_a_topic_and_removes_none(listing: list[list[str]]) -> None:
    assert set(listing[2]) == PACKAGED | {f"{GROUP}_climate"}


def test_the_environment_variable_adds_topics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_topic(tmp_path / "one", "climate")
    write_topic(tmp_path / "two", "housing")
    monkeypatch.setenv("STANCE_TOPICS", os.pathsep.join([str(tmp_path / "one"), str(tmp_path / "two")]))
    assert members(task_manager()) == PACKAGED | {f"{GROUP}_climate", f"{GROUP}_housing"}
    monkeypatch.delenv("STANCE_TOPICS")
    assert members(task_manager([tmp_path / "one"])) == PACKAGED | {f"{GROUP}_climate"}
    assert members(task_manager()) == PACKAGED


def test_a_folder_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STANCE_TOPICS", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"STANCE_TOPICS names .*nowhere"):
        task_manager()


def test_a_broken_topic_is_an_input_error_that_names_file_and_key(tmp_path: Path) -> None:
    path = write_topic(tmp_path / "mine", licence="license")
    with pytest.raises(InputError) as caught:
        task_manager([tmp_path / "mine"])
    assert str(path) in str(caught.value)
    assert "`license`" in str(caught.value)


def test_two_files_of_one_topic_are_refused(tmp_path: Path) -> None:
    write_topic(tmp_path / "mine", "race")
    with pytest.raises(InputError, match="'race' stands in two files"):
        task_manager([tmp_path / "mine"])
    assert tmp_path / "mine" not in all_roots()


def test_tasks_path_prints_the_packaged_folder(tmp_path: Path) -> None:
    stance = Path(sys.executable).parent / "stance"
    done = subprocess.run([stance, "tasks-path"], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == f"{packaged_root()}\n"
    assert sorted(find_topics([Path(done.stdout.strip())])) == sorted(TOPICS)


def test_vllm_is_found_under_its_own_name() -> None:
    wanted = (ROOT / "requirements" / "gpu.in").read_text().split("vllm==")[1].split()[0]
    assert importlib.metadata.version("vllm").split("+")[0] == wanted


def test_the_hook_imports_nothing_heavy_and_costs_little(tmp_path: Path) -> None:
    loaded = python("-c", "import sys; print(*sys.modules)", cwd=tmp_path).stdout.split()
    assert HOOK in loaded
    assert not {"harness", "lm_eval", "torch", "yaml", "pydantic"} & set(loaded)
    runs = [python("-X", "importtime", "-c", "pass", cwd=tmp_path).stderr for _ in range(3)]
    microseconds = [int(re.findall(rf"\|\s*(\d+) \|\s*{HOOK}$", run, re.MULTILINE)[0]) for run in runs]
    assert min(microseconds) < 250_000


def test_lm_eval_works_when_the_harness_is_gone(tmp_path: Path) -> None:
    shutil.copy(ROOT / "harness" / "lmeval" / "startup.py", tmp_path / f"{HOOK}.py")
    packages = sysconfig.get_path("purelib")
    done = python("-I", "-S", "-c", WITHOUT_HARNESS, tmp_path, packages, cwd=tmp_path)
    assert "lm_eval works" in done.stdout


def test_the_wheel_holds_topics_hook_plugins_and_report(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith("/entry_points.txt"))
        declared = configparser.ConfigParser()
        declared.read_string(archive.read(metadata).decode())
    topics = {path.relative_to(ROOT / "tasks") for path in (ROOT / "tasks").rglob("*") if path.is_file()}
    assert {f"harness/_tasks/{path.as_posix()}" for path in topics} <= names
    assert {
        "harness/_tasks/political_stance/immigration.yaml",
        "harness/_tasks/political_stance/race.items.jsonl",
    } <= names
    assert {f"{HOOK}.py", f"{HOOK}.pth", "plugins/pnlac.py", "harness/_experiments/demo.yaml"} <= names
    report = [path for path in (ROOT / "harness" / "report").iterdir() if path.is_file()]
    assert any(path.suffix != ".py" for path in report)
    assert {f"harness/report/{path.name}" for path in report} <= names
    assert declared["console_scripts"]["stance"] == "harness.cli:main"
    plugins = [group for group in declared.sections() if group.startswith("stance_harness.")]
    assert plugins
    for group in ("lm_eval.tasks", *plugins):
        for target in declared[group].values():
            assert f"{target.split(':')[0].replace('.', '/')}.py" in names
    assert not [name for name in names if name.startswith(("tests/", "reports/", "requirements/"))]


def test_an_installed_wheel_needs_no_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    python("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel, cwd=tmp_path)
    packages = sysconfig.get_path("purelib")
    done = python("-I", "-S", "-c", WHEEL_ONLY, site, packages, cwd=tmp_path)
    module, root, topics, hooked = json.loads(done.stdout.splitlines()[-1])
    assert Path(module) == site / "harness" / "__init__.py"
    assert Path(root) == site / "harness" / "_tasks"
    assert sorted(topics) == sorted(TOPICS)
    assert hooked
