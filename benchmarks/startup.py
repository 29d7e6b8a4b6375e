"""Where the time goes before the first answer: interpreter, imports, engine, first request; beside lm-eval's own way.

    python benchmarks/startup.py --rounds 3

Every stage is timed in a new process, and is the difference to the stage before it, by medians. The last rows are whole
commands: `stance --help` against `lm_eval --help`, and the tasks of a topic found by us and by lm-eval's full index.
"""

from __future__ import annotations

import subprocess
import sys
import time

from common import arguments, median, publish

from harness.models import resolve

ENGINE = """
import os, time
from harness.process import settle
settle()
from harness.engines import Settings, start
begun = time.perf_counter()
engine = start("vllm", {folder!r}, Settings(dtype="bfloat16", max_length=512))
ready = time.perf_counter()
engine.score_choices([([5, 6, 7], [8, 9])])
first = time.perf_counter()
print(ready - begun, first - ready)
"""
STAGES = {
    "interpreter": "pass",
    "import torch": "import torch",
    "import transformers' models": "import torch; from transformers import AutoModelForCausalLM",
    "import vllm": "import torch; from transformers import AutoModelForCausalLM; from vllm import LLM",
}
COMMANDS = {
    "stance --help": "import sys; sys.argv = ['stance', '--help']; from harness.cli import main; main()",
    "lm_eval --help": "import sys; sys.argv = ['lm_eval', '--help']; import lm_eval.__main__ as m; m.cli_evaluate()",
    "tasks, stance": "from harness.lmeval.roots import task_manager; task_manager()",
    "tasks, lm-eval": "from lm_eval.tasks import TaskManager; TaskManager()",
}


def run(program: str) -> tuple[float, str]:
    """Seconds of a new process, and its last line."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return time.perf_counter() - begun, (done.stdout.splitlines() or [""])[-1]


def main() -> None:
    given = arguments(__doc__ or "", model="smollm2-135m-instruct", rounds=3)
    engine = ENGINE.format(folder=resolve(given.model))
    whole: dict[str, list[float]] = {name: [] for name in (*STAGES, *COMMANDS)}
    starts, firsts = [], []
    for _ in range(given.rounds):
        for name, program in (STAGES | COMMANDS).items():
            whole[name].append(run(program)[0])
        started, first = map(float, run(engine)[1].split())
        starts.append(started)
        firsts.append(first)
    medians = {name: median(taken) for name, taken in whole.items()}
    rows, before = [], 0.0
    for name in STAGES:
        rows.append({"what": name, "seconds": max(0.0, medians[name] - before)})
        before = medians[name]
    rows.append({"what": "engine with weights", "seconds": median(starts)})
    rows.append({"what": "first request", "seconds": median(firsts)})
    rows += [{"what": name, "seconds": medians[name]} for name in COMMANDS]
    publish("startup", rows, given.out, model=given.model)


if __name__ == "__main__":
    main()
