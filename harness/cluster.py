"""Steps on a Ray cluster: each as soon as the steps it reads are there, on a node with what it needs.

Where every node sees the study's folder, steps write into it. Where one does not, steps write into folders of their nodes
and what they made comes back here; a later step is sent what it reads. Either way the run folders are those of a local run.
A step whose process or node is lost is tried again elsewhere; one that failed for a reason the user has to mend is not.

    stance run experiments/mitigations.yaml --ray
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from harness import __version__
from harness.characters import one_line
from harness.checksums import MANIFEST
from harness.cluster_node import Ground, Made, Node, Read, carry_out, clean, get_ready, look, packed, size_of, unpack
from harness.costs import ModelCost
from harness.errors import InputError, ProofError, choices
from harness.executor import outcome
from harness.graph import Step
from harness.models import resolve
from harness.progress import bar

PROCESS = 10**9  # bytes of a process with its libraries, beside weights
PASSED_ON = ("HF_HUB_OFFLINE", "STANCE_TOPICS", "STANCE_VERBOSE")


class RayExecutor:
    """See `harness.executor.Executor`. A context manager: it leaves the cluster, and cleans the nodes, at its end.

    `address`: of a running cluster; None: the one that the environment or this machine names, else one on this machine
    alone. `shared`: whether nodes see the study's folder; None: they are asked. `tries`: of a step that is lost.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str | None = None, shared: bool | None = None, tries: int = 3) -> None:
        try:
            import ray
        except ImportError:
            raise InputError(
                "--ray needs Ray, which is not installed here: pip install 'ray[default]' on every machine of the cluster, "
                "or leave --ray out."
            ) from None
        self._ray: Any = ray
        self._address, self._shared, self._tries = address, shared, tries
        self._run = uuid.uuid4().hex[:12]
        self._environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._ready: list[Any] = []

    def __enter__(self) -> RayExecutor:
        try:
            self._ray.init(address=self._address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = one_line(str(error))[:200]
            raise InputError(
                f"There is no Ray cluster at {self._address} ({reason}). Start one with `ray start --head` and give the "
                "address it prints, or leave the address out."
            ) from None
        self._ready = self._asked(get_ready, self._environment, tuple(sys.argv))  # while the study is prepared here
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(self._ray.exceptions.RayError):
            self._answered(self._asked(clean, self._run))
        self._ray.shutdown()

    def carry_out(self, steps: Sequence[Step], reads: Sequence[str]) -> None:
        """See `harness.executor.Executor`.

        Raises:
            InputError: as a step; nodes with another release; a step that fits no node, or is lost time after time.
        """
        if not steps:
            return
        root = Path(os.path.commonpath([step.path.parent.resolve() for step in steps]))
        seen = root / f".ray-{self._run}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            seen.touch()
        except OSError as error:
            raise InputError(f"Cannot write to {root} ({error.strerror}); give another --out.") from None
        try:
            ground, nodes = self._ground(root, seen, [_read(name) for name in dict.fromkeys(reads)])
            click.echo(f"{len(nodes)} nodes, {'one folder' if ground.shared else 'folders of their own'}", err=True)
            _Run(self._ray, steps, ground, self._resources(reads), self._tries).finish()
        finally:
            seen.unlink(missing_ok=True)

    def _ground(self, root: Path, seen: Path, reads: list[Read]) -> tuple[Ground, list[Node]]:
        """What is common to all steps, and the nodes; what a node lacks is sent from here, file by file."""
        ground = Ground(self._run, str(root), str(seen), True, tuple(reads), {}, self._environment, tuple(sys.argv))
        self._answered(self._ready)
        nodes = self._answered(self._asked(look, ground))
        if others := sorted({f"{node.name} has {node.version}" for node in nodes if node.version != __version__}):
            raise InputError(
                f"This machine has stance-harness {__version__}, but {choices(others)}; install one release."
            )
        shared = all(node.sees for node in nodes) if self._shared is None else self._shared
        lacked = {name for node in nodes for name in node.lacks}
        wanted = [read for read in reads if read.name in lacked or not (shared or read.looked_up)]
        sent = {read.name: {k: self._ray.put(v) for k, v in packed(Path(read.path)).items()} for read in wanted}
        return replace(ground, shared=shared, sent=sent), nodes

    def _resources(self, reads: Sequence[str]) -> _Resources:
        usable = [node["Resources"] for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        cost = ModelCost(reads[0], resolve(reads[0])) if reads else None
        return _Resources(usable, (cost.parameters or 0.0) if cost else 0.0)

    def _asked(self, work: Any, *given: Any) -> list[Any]:
        """Something done once on every node: references to the answers."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = self._ray.remote(work)
        places = [node["NodeID"] for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        there = [NodeAffinitySchedulingStrategy(place, soft=False) for place in places]
        return [task.options(num_cpus=0, scheduling_strategy=one).remote(*given) for one in there]

    def _answered(self, asked: list[Any]) -> list[Any]:
        """The answers of all nodes.

        Raises:
            InputError: a node that cannot run stance-harness.
        """
        try:
            return self._ray.get(asked)
        except (self._ray.exceptions.RaySystemError, ModuleNotFoundError) as error:
            reason = one_line(str(error))[-200:]
            raise InputError(
                f"A node of the cluster cannot run stance-harness ({reason}); install the same release on every node."
            ) from None


class _Resources:
    """What steps ask of nodes. A node takes as many at once as it has GPUs, or one where the cluster has none."""

    def __init__(self, nodes: Sequence[Mapping[str, float]], parameters: float) -> None:
        self._parameters = parameters
        self.gpus = any(node.get("GPU") for node in nodes)
        places = [node for node in nodes if node.get("GPU")] if self.gpus else nodes
        self._cores = min(max(1, int(node["CPU"] // max(1, node.get("GPU", 1)))) for node in places)
        self._largest = max(node.get("memory", 0.0) for node in places)
        self._most_gpus = max(int(node.get("GPU", 0)) for node in places)

    def of(self, step: Step) -> dict[str, Any]:
        """Options of the step's task.

        Raises:
            InputError: no node has so much memory, or so many GPUs.
        """
        memory = int(PROCESS + step.needs.weights * self._parameters)
        gpus = step.needs.gpus if self.gpus else 0
        if memory > self._largest or gpus > self._most_gpus:
            raise InputError(
                f"Step {step.name} needs {memory / 1e9:.1f} GB of memory and {gpus} GPUs; the largest node of the cluster "
                f"offers {self._largest / 1e9:.1f} GB and {self._most_gpus}. Add a larger node, or say what it has with "
                "`ray start --memory=BYTES --num-gpus=N`."
            )
        return {"num_cpus": self._cores * max(1, gpus), "num_gpus": gpus, "memory": memory}


class _Run:
    """Steps on their way."""

    def __init__(self, ray: Any, steps: Sequence[Step], ground: Ground, resources: _Resources, tries: int) -> None:
        self._ray, self._root, self._resources = ray, Path(ground.root), resources
        self._shared, self._ground = ground.shared, ray.put(ground)
        # What a GPU's process has begun with CUDA stays with it, and the next step may be given another GPU.
        self._task = ray.remote(max_calls=1)(carry_out) if resources.gpus else ray.remote(carry_out)
        self._options = {"max_retries": tries, "retry_exceptions": True}
        self._paths = {step.path for step in steps}
        self._waiting = list(steps)
        self._running: dict[Any, Step] = {}
        self._made: dict[Path, Any] = {}  # finished, by folder: what a later step is given of it
        self._failed: Exception | None = None

    def finish(self) -> None:
        """Carry out all of them; after a failure those that run are still waited for, since they are kept."""
        try:
            with bar(total=len(self._waiting), what="steps", unit="step") as progress:
                for step in self._finished():
                    self._waiting = [other for other in self._waiting if other is not step]
                    self._forget()
                    progress.update(1)
        except KeyboardInterrupt:
            for task in self._running:
                self._ray.cancel(task, force=True)
            raise
        if self._failed is not None:
            raise self._failed

    def _finished(self) -> Iterator[Step]:
        """Steps as they finish, those that were there already first."""
        while self._waiting or self._running:
            yield from self._begin()
            if not self._running:
                return
            done, _ = self._ray.wait(list(self._running), num_returns=1)
            for task in done:
                step = self._running.pop(task)
                if self._settle(step, task):
                    yield step

    def _begin(self) -> Iterator[Step]:
        """Hand out what has become possible; what is there already is looked at here, as a local run does."""
        running = set(self._running.values())
        for step in self._waiting if self._failed is None else []:
            if step in running or any(self._pending(other) for other in step.after):
                continue
            try:
                if (step.path / MANIFEST).is_file():
                    run = step.run()
                    self._made[step.path] = None
                    self._say(step, outcome(0, None if run is None else run.manifest["seconds"]))
                    yield step
                else:
                    self._running[self._submitted(step)] = step
            except (InputError, ProofError) as error:
                self._fail(step, error)
                return

    def _submitted(self, step: Step) -> Any:
        folder, after = self._named(step), [self._named(other) for other in step.after]
        options = {**self._resources.of(step), **self._options, "name": step.name}
        given = [self._input(other) for other in step.after]
        return self._task.options(**options).remote(step.work, folder, after, self._ground, *given)

    def _pending(self, step: Step) -> bool:
        """Whether a step that another reads is yet to be made; those of an earlier call are there."""
        return step.path in self._paths and step.path not in self._made

    def _forget(self) -> None:
        """Let go of what no step that is left reads; it lies in its folder."""
        read = {other.path for step in self._waiting for other in step.after}
        self._made = {path: made if path in read else None for path, made in self._made.items()}

    def _input(self, step: Step) -> Any:
        made = self._made.get(step.path)
        if made is None:
            made = self._ray.put(Made(files=None if self._shared else packed(step.path)))
            self._made[step.path] = made
        return made

    def _settle(self, step: Step, task: Any) -> bool:
        """Keep what a finished task made; False where it failed."""
        try:
            made: Made = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            self._fail(step, error.as_instanceof_cause())
            return False
        except self._ray.exceptions.RayError as error:
            reason = one_line(str(error))[:300]
            lost = InputError(
                f"Step {step.name} was lost with its process or its node time after time ({reason}). Most often a node has "
                "too little memory: look at `ray status` and the node's logs, then give the same command again."
            )
            self._fail(step, lost)
            return False
        if made.error is not None:
            self._fail(step, made.error)
            return False
        if made.files is not None:
            unpack(made.files, step.path)
        self._made[step.path] = task
        self._say(step, f"{outcome(made.taken, made.seconds)} on {made.node}")
        return True

    def _fail(self, step: Step, error: Exception) -> None:
        self._say(step, " failed" if isinstance(error, (InputError, ProofError)) else " broke off")
        self._failed = self._failed or error

    def _say(self, step: Step, what: str) -> None:
        left = len(self._waiting) - 1
        click.echo(f"[{step.number:02d}] {step.name} ...{what} ({left} to go, {len(self._running)} running)", err=True)

    def _named(self, step: Step) -> str:
        return str(step.path.resolve().relative_to(self._root))


def _read(name: str) -> Read:
    """What steps know by a name, as it lies here."""
    from harness.placed import title

    local = Path(name).exists()
    path = Path(name).resolve() if local else Path(resolve(name))
    return Read(name, str(path), size_of(path), title(name), not local)
