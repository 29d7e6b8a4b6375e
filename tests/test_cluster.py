"""An experiment on a Ray cluster of three nodes in processes of this machine: the same folders and figures as locally."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
from test_experiment import TASKS, experiment

from harness.config import load_experiment
from harness.errors import InputError
from harness.executor import InOrder, carried_out_by, current
from harness.experiment import prepare, run
from harness.graph import Needs, Numbered, numbered_folder
from harness.runs import Run, open_run

SMALL = {
    "measure": {
        "tasks": TASKS[:2],
        "limit": 2,
        "engine": "torch",
        "dtype": "float32",
        "axes": {"wording": ["original"], "forcing": ["soft"]},
    },
    "localize": {"prompts": 2},
    "patch": None,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tiny.build("llama", max_position_embeddings=1024, num_hidden_layers=2)
    return tiny.save(made, tmp_path_factory.mktemp("base"), chat=True)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, model: str) -> tuple[Any, Path, pd.DataFrame]:
    """The experiment, carried out here: its settings, its folder and its figures."""
    folder = tmp_path_factory.mktemp("local")
    config = load_experiment(experiment(folder, model, **SMALL))
    return config, folder / "out", run(config, folder / "out").stance


# Python reads this at its start; it keeps a node's processes from the folders of another machine.
WALL = """
import os, sys

forbidden = tuple(filter(None, os.environ.get("FORBIDDEN", "").split(os.pathsep)))


def refuse(event, given):
    if event in ("open", "os.listdir", "os.scandir") and str(given[0]).startswith(forbidden):
        raise PermissionError(13, "another machine's", str(given[0]))


if forbidden:
    sys.addaudithook(refuse)
"""


class Nodes:
    """A cluster of three nodes, a core and a cache each, whose processes cannot open what lies in `apart`."""

    def __init__(self, place: Path) -> None:
        from ray.cluster_utils import Cluster

        self.apart, self.caches, wall = place / "apart", place / "caches", place / "wall"
        for folder in (self.apart, self.caches, wall):
            folder.mkdir()
        (wall / "sitecustomize.py").write_text(WALL)
        self.cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.workers = []
        for number in range(3):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("FORBIDDEN", str(self.apart))
                patch.setenv("STANCE_CACHE", str(self.caches / str(number)))
                patch.setenv("PYTHONPATH", os.pathsep.join([str(wall), os.environ.get("PYTHONPATH", "")]))
                self.workers.append(self.cluster.add_node(num_cpus=1))

    def run(self, config: Any, out: Path, **how: Any) -> pd.DataFrame:
        from harness.cluster import RayExecutor

        shutil.rmtree(self.caches)
        with RayExecutor(self.cluster.address, **how) as executor, carried_out_by(executor):
            return run(config, out).stance

    def lose_one_at_work(self) -> None:
        """Kill the first node in whose folder an unfinished step is seen, and say which step it was."""
        while True:
            for node in self.workers:
                if begun := list(
                    Path(tempfile.gettempdir()).glob(f"stance-*-{node.node_id[:12]}/runs/*/unfinished.json")
                ):
                    self.lost = begun[0].parent
                    self.cluster.remove_node(node, allow_graceful=False)
                    return
            time.sleep(0.02)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    pytest.importorskip("ray")
    made = Nodes(tmp_path_factory.mktemp("cluster"))
    yield made
    made.cluster.shutdown()


def folders(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


@pytest.mark.cluster
def test_nodes_that_see_the_folder_write_into_it(nodes: Nodes, local: Any, tmp_path: Path, capfd: Any) -> None:
    config, out, figures = local
    made = tmp_path / "out"
    found = nodes.run(config.model_copy(update={"inhibit": None}), made)
    assert "3 nodes, one folder" in capfd.readouterr().err
    first = [path.name for path in sorted(out.iterdir())][:4]
    assert folders(made) == {name for name in folders(out) if name.split("/")[0] in first}
    wanted = figures[figures["run"].isin(found["run"])].reset_index(drop=True)
    assert len(found) == len(wanted) > 0
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.cluster
def test_nodes_of_their_own_disks_one_of_which_is_lost(nodes: Nodes, local: Any, capfd: Any) -> None:
    config, out, figures = local
    base = shutil.copytree(config.model, nodes.apart / "base")
    losing = threading.Thread(target=nodes.lose_one_at_work, daemon=True)
    losing.start()
    there = nodes.apart / "out"
    found = nodes.run(config.model_copy(update={"model": str(base)}), there, shared=False)
    losing.join(timeout=1)
    assert "3 nodes, folders of their own" in capfd.readouterr().err
    assert (there / nodes.lost.name / "manifest.json").is_file()  # what was lost with its node was made again
    assert folders(there) == folders(out)
    pd.testing.assert_frame_equal(found, figures, rtol=1e-5, atol=1e-7)
    shutil.rmtree(nodes.lost.parents[1], ignore_errors=True)


class Small(Numbered):
    """Two steps and one that reads them."""

    def __init__(self, out: Path) -> None:
        self.out, self.order = out, list[str]()

    def declared(self, *, second: Any = None) -> None:
        def made(name: str) -> Any:
            def work(out: Path, *read: Path) -> Run:
                self.order.append(name)
                run = open_run(out, "small", {"read": [path.name for path in read]})
                if not run.complete:
                    run.finish()
                return run

            return work

        first = self.step("first", made("first"))
        other = self.step("second 5%", second or made("second"))
        self.step("third", made("third"), first, other)


def test_steps_are_made_in_their_order_and_are_handed_the_folders_they_read(tmp_path: Path) -> None:
    study = Small(tmp_path)
    study.declared()
    assert study.order == [] and not list(tmp_path.iterdir())
    study.carry_out()
    assert study.order == ["first", "second", "third"]
    spec = json.loads((tmp_path / "03-third" / "manifest.json").read_text())["spec"]
    assert spec["read"] == ["01-first", "02-second 5pct"]
    study.carry_out()
    assert len(study.order) == 3


def test_a_step_with_nothing_to_make_keeps_its_number_and_leaves_no_folder(tmp_path: Path, capsys: Any) -> None:
    study = Small(tmp_path)
    study.declared(second=lambda out: None)
    study.carry_out()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01-first", "03-third"]
    assert "nothing to make" in capsys.readouterr().err


def test_a_folder_whose_number_has_moved_is_found(tmp_path: Path) -> None:
    (tmp_path / "04-measure-tuned").mkdir()
    (tmp_path / "05-not-measure-tuned").mkdir()
    assert numbered_folder(tmp_path, 5, "measure-tuned").name == "04-measure-tuned"
    assert numbered_folder(tmp_path, 4, "tune").name == "04-tune"


def test_no_step_drags_its_study_along(local: Any, tmp_path: Path) -> None:
    config, _, _ = local
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    study, steps = prepare(config, tmp_path), []

    class Keep:
        def carry_out(self, some: Any, reads: Any) -> None:
            steps.extend(some)
            raise InputError("enough")

    with carried_out_by(Keep()), pytest.raises(InputError, match="enough"):
        run(config, tmp_path)
    assert isinstance(current(), InOrder)
    sizes = {step.name: len(cloudpickle.dumps(step.work)) for step in steps}
    whole = len(pickle.dumps(study.topics))
    assert len(sizes) == 9 and max(sizes.values()) < 1.5 * whole, sizes
    assert sum(size > 100_000 for size in sizes.values()) <= 1, sizes  # the localisation's questions


def test_what_no_node_can_carry_is_refused() -> None:
    from harness.cluster import _Resources
    from harness.graph import Step

    nodes = [{"CPU": 8.0, "memory": 20e9, "GPU": 2.0}, {"CPU": 64.0, "memory": 900e9}]
    fits = Step(1, "fits", Path("x"), lambda out: None, needs=Needs(2, 4.0))
    assert _Resources(nodes, 1e9).of(fits) == {"num_cpus": 8, "num_gpus": 2, "memory": 5 * 10**9}
    with pytest.raises(InputError, match=r"needs 33\.0 GB of memory and 2 GPUs; the largest node .* 20\.0 GB and 2"):
        _Resources(nodes, 8e9).of(fits)
    alone = _Resources(nodes[1:], 8e9).of(fits)
    assert (alone["num_gpus"], alone["num_cpus"]) == (0, 64)


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.cluster import RayExecutor

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="pip install 'ray\\[default\\]'"):
        RayExecutor()
