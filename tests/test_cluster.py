"""An experiment on a Ray cluster of three nodes in processes of this machine: the same folders and figures as locally."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
from test_experiment import TASKS, experiment

from harness.config import load_experiment
from harness.executor import carried_out_by
from harness.experiment import run

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
    return config, folder / "out", run(config, folder / "out").summary


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes, a core each. Their processes inherit this one's environment."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def on(cluster: Any, config: Any, out: Path, **how: Any) -> pd.DataFrame:
    from harness.cluster import RayExecutor

    with RayExecutor(cluster.address, **how) as executor, carried_out_by(executor):
        return run(config, out).summary


def folders(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


@pytest.mark.cluster
def test_a_cluster_makes_the_same_folders_and_figures(cluster: Any, local: Any, tmp_path: Path) -> None:
    config, out, figures = local
    found = on(cluster, config, tmp_path / "out")
    assert folders(tmp_path / "out") == folders(out)
    pd.testing.assert_frame_equal(found, figures, rtol=1e-5, atol=1e-7)
