"""A study on a Ray cluster of this machine against the same study here: what the cluster costs, and what it gives.

    python benchmarks/cluster.py --rounds 3

Both are whole commands in new processes: imports, the steps of a small experiment, the report. The cluster is there before
they begin, as one that others have started is; its workers are not, so each imports torch and the rest once. With one core
per node and as many nodes as cores, what the rows differ by is starting, importing and sending, less what steps gain side by
side.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from common import alternate, arguments, median, publish

from harness.models import resolve


def random_model(folder: Path, tokenizer: str) -> str:
    """A small Llama with random weights under a real tokenizer and chat template."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from harness.models import load_tokenizer

    words = load_tokenizer(tokenizer)
    shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(words), max_position_embeddings=1024, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def experiment(model: str, limit: int, epochs: float) -> dict[str, Any]:
    """One topic tuned on, localised, held and measured: nine steps."""
    recipe = {"mode": "full", "epochs": epochs, "learning_rate": 1e-4, "batch_size": 16, "checkpoints": False}
    return {
        "name": "cluster",
        "model": model,
        "train": {"topics": ["immigration"], "recipe": recipe},
        "measure": {
            "tasks": ["political_stance_*_pairs"],
            "limit": limit,
            "engine": "torch",
            "dtype": "float32",
            "axes": {"wording": ["original"], "forcing": ["soft"]},
        },
        "localize": {"prompts": 8},
        "inhibit": {"shares": [0.05], "random_seeds": [0]},
    }


def main() -> None:
    from ray.cluster_utils import Cluster

    given = arguments(__doc__ or "", tokenizer="smollm2-135m-instruct", limit=4, epochs=1.0, rounds=3, nodes=3)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        file, model = work / "experiment.yaml", random_model(work / "model", resolve(given.tokenizer))
        file.write_text(yaml.safe_dump(experiment(model, given.limit, given.epochs)), encoding="utf-8")
        os.environ["OMP_NUM_THREADS"] = "1"  # on every side the same, as Ray gives a step its cores
        os.environ["STANCE_CACHE"] = str(work / "cache")
        cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(given.nodes):
            cluster.add_node(num_cpus=1)
        count = 0

        def run(*more: str) -> None:
            nonlocal count
            count += 1
            out = ["--out", str(work / str(count))]
            shutil.rmtree(work / "cache", ignore_errors=True)  # what was answered before is asked again
            command = [sys.executable, "-c", "from harness.cli import main; main()", "run", str(file), *out, *more]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])

        try:
            seconds = alternate({"here": run, "Ray": lambda: run("--ray", cluster.address)}, given.rounds)
        finally:
            cluster.shutdown()
    here = median(seconds["here"])
    rows = [{"where": w, "seconds": median(s), "ratio to here": median(s) / here} for w, s in seconds.items()]
    about = {
        "model": "random, 4 layers of 128",
        "nodes": given.nodes,
        "steps": 9,
        "limit": given.limit,
        "epochs": given.epochs,
    }
    publish("cluster", rows, given.out, rounds=seconds, **about)


if __name__ == "__main__":
    main()
