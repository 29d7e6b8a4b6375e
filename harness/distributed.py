"""A fine-tune in several processes of one machine, a GPU each (or on CPUs, over gloo): the same recipe, the same batches.

Each process takes its share of every batch, and gradients are averaged over all of them (transformers' Trainer through
accelerate; torch's launcher starts the processes, as `accelerate launch` does). Held entries' gradients are zero in every
process, so their average is; after every step each process writes them back, and the first one proves them on what it saved.

Sharded (FSDP), a process has its rows of every weight, gradient and moment, so that a model larger than one GPU's memory can
be trained; held entries are written back by the process that has them. What was saved is proven on the CPU.

Figures are those of one process up to the order in which floats are added, where the examples divide into whole batches;
otherwise accelerate fills the last batch of an epoch up with examples of its beginning. LoRA's dropout draws otherwise.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness.errors import InputError, ProofError
from harness.recipe import Recipe
from harness.runs import Run

TAIL = 1500  # characters of what a broken process said


def check_processes(recipe: Recipe, processes: int, sharded: bool, anchored: bool) -> None:
    """Refuse what several processes cannot do.

    Raises:
        InputError: a batch that does not divide, an anchor, fewer GPUs, or weights to be shared out in one process.
    """
    import torch

    if sharded and processes == 1:
        raise InputError("sharded shares the weights out among processes; give 2 or more of them (processes).")
    if recipe.batch_size % processes:
        raise InputError(
            f"batch_size is {recipe.batch_size} and processes {processes}; every process takes the same share of a batch, so "
            "give a multiple."
        )
    if anchored and processes > 1:
        raise InputError("A fine-tune with an anchor is trained in one process; leave `processes` out.")
    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        raise InputError(f"processes is {processes}; this machine has {torch.cuda.device_count()} GPUs, one for each.")


def tune_in(processes: int, sharded: bool, run: Run, *given: Any) -> None:
    """`finetune.tune` in so many processes; `given` are its arguments behind the run.

    Raises:
        InputError, ProofError: as `finetune.tune`, which the first process says.
        RuntimeError: a process broke off otherwise.
    """
    with tempfile.TemporaryDirectory() as scratch:  # nobody else's: the pickles in it are of this process's making
        job = Path(scratch) / "job"
        job.write_bytes(pickle.dumps((str(run.path), run.kind, run.spec, sharded, given)))
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *launch, "-m", "harness.distributed", str(job)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        answer = job.with_suffix(".done")
        if not answer.is_file():
            said = done.stderr.decode(errors="replace")[-TAIL:]
            raise RuntimeError(f"A training process broke off (exit {done.returncode}): {said}")
        result = pickle.loads(answer.read_bytes())
    if isinstance(result, Exception):
        raise result
    run.notes.update(result)


def main() -> None:
    """One of the processes."""
    from harness.process import settle

    settle()
    import torch

    from harness.finetune import tune

    rank = int(os.environ["RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    job = Path(sys.argv[1])
    path, kind, spec, sharded, given = pickle.loads(job.read_bytes())
    run = Run(Path(path), kind, spec)
    result: Any = run.notes
    try:
        tune(run, *given, processes=int(os.environ["WORLD_SIZE"]), sharded=sharded)
    except (InputError, ProofError) as error:
        result = error
    if rank == 0:
        part = job.with_suffix(".part")
        part.write_bytes(pickle.dumps(result))
        part.replace(job.with_suffix(".done"))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    from torch.distributed.elastic.multiprocessing.errors import record

    record(main)()  # the launcher's last words are then of what broke
