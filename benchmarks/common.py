"""What every benchmark shares: timing candidates in turn in one run, the printed table, and the JSON file.

Candidates are timed in alternation, round after round, so that a machine that slows down slows all of them; what counts is
the ratio of medians, not the seconds.
"""

from __future__ import annotations

import argparse
import atexit
import json
import multiprocessing
import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from harness.neurons import Neurons

RESULTS = Path(__file__).resolve().parent / "results"


def arguments(about: str, **options: Any) -> argparse.Namespace:
    """Parse `--name VALUE` for every option (typed like its default), and --out."""
    parser = argparse.ArgumentParser(description=about)
    for name, default in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"[{default}]")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON file")
    return parser.parse_args()


def alternate(candidates: dict[str, Callable[[], Any]], rounds: int = 3) -> dict[str, list[float]]:
    """Seconds of every candidate in every round, the candidates taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, work in candidates.items():
            begun = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def machine() -> dict[str, Any]:
    """Where and with what it was measured, without naming the host."""
    import torch

    from harness.runs import package_versions

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        "versions": package_versions(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def matrix_product(dtype: torch.dtype, wide: int, hidden: int, where: str) -> tuple[Callable[[], None], float]:
    """A second or so of matrix products in the shape of the MLP, and the floating-point operations of them all."""
    import torch

    a, b = torch.randn(2048, hidden, device=where).to(dtype), torch.randn(wide, hidden, device=where).to(dtype)
    one = 2.0 * 2048 * wide * hidden
    times = max(1, round((5e11 if where == "cpu" else 1e15) / one))

    def work() -> None:
        for _ in range(times):
            torch.nn.functional.linear(a, b)
        if where == "cuda":
            torch.cuda.synchronize()

    return work, one * times


def questions(tokenizer: Any, count: int) -> list[list[int]]:
    """The first packaged questions as token ids, under the model's chat template."""
    from harness.lmeval.roots import packaged_root
    from harness.measure import prompt_ids
    from harness.topics import find_topics

    texts = [item.question for topic in find_topics([packaged_root()]).values() for item in topic.items][:count]
    return [prompt_ids(tokenizer, text, chat=True) for text in texts]


def some(model: Any, site: Any, share: float = 0.05) -> Neurons:
    """Random neurons of every layer."""
    import torch

    from harness.neurons import Neurons
    from harness.sites import mlps, width

    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(len(mlps(model)), width(model, site), generator=generator) < share
    return Neurons(mask, site, "benchmark")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def publish(name: str, rows: list[dict[str, Any]], out: Path, **about: Any) -> None:
    """Print the rows as a table and write them, with the machine, to `out`/`name`.json."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=name)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_shown(row.get(column, "")) for column in columns))
    Console().print(table)
    out.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": name, **about, "rows": rows, "machine": machine()}
    (out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Peer:
    """A candidate in a process of its own, so that libraries cannot disturb one another; idle while others run.

    `make(**options)` runs in the child and returns what answers `work(name)` there: a dict of functions without arguments.
    `settled`: as this project's commands settle their process (harness/process.py), or as a script of its own finds it.
    """

    def __init__(self, make: Callable[..., dict[str, Callable[[], Any]]], settled: bool = True, **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, settled, options))
        self._process.start()
        atexit.register(self.close)
        other.close()
        self._ready()

    def run(self, name: str) -> tuple[float, Any]:
        """Seconds that the child's function took, and what it returned."""
        self._pipe.send(name)
        return self._ready()

    def close(self) -> None:
        """End the child and all that it started."""
        import psutil

        if not self._process.is_alive():
            return
        family = [*psutil.Process(self._process.pid).children(recursive=True), self._process]
        for process in family:
            process.kill()
        self._process.join()

    def _ready(self) -> Any:
        kind, value = self._pipe.recv()
        if kind == "error":
            raise RuntimeError(value)
        return value


def take_turns(ways: dict[str, tuple[Peer, str]], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds in every round of what each peer is asked for, the peers taking turns, and what it returned last."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    values = {}
    for _ in range(rounds):
        for name, (peer, what) in ways.items():
            taken, values[name] = peer.run(what)
            seconds[name].append(taken)
    return seconds, values


def _serve(
    pipe: Any, make: Callable[..., dict[str, Callable[[], Any]]], settled: bool, options: dict[str, Any]
) -> None:
    from harness.process import settle

    if settled:
        settle()
    os.environ.pop("TQDM_DISABLE", None)  # vLLM divides by a bar's elapsed time, and lm-eval always asks for its bar
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; by default each engine on a CPU takes nearly all memory
    try:
        functions = make(**options)
        pipe.send(("ready", None))
        while (name := pipe.recv()) is not None:
            begun = time.perf_counter()
            value = functions[name]()
            pipe.send(("done", (time.perf_counter() - begun, value)))
    except Exception:
        pipe.send(("error", traceback.format_exc()))
