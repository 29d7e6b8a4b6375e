"""Gates in engines started otherwise than ours: with a compiled graph, and split over two ranks. Against Torch hooks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny as t
import torch

from harness.engines.torch import TorchEngine
from harness.interventions import Op
from harness.models import load_model, load_tokenizer
from harness.sites import SITES

pytestmark = pytest.mark.engine

OPS = ("zero", "scale=2", "constant=0.3", "range=-0.4:0.4:-1")
WIDER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32, "num_attention_heads": 2}
ASK = """
import functools, json, os, sys
os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_OMP_THREADS_BIND="nobind")
from pathlib import Path
from vllm import LLM
from harness.engines.vllm import carry_out, gate
from harness.engines.vllm_plugin import EXTENSION, LOAD_FORMAT
from harness.engines.vllm_scoring import choice_scores
from harness.interventions import Op
from harness.neurons import Neurons

def main(folder, cases, asked, more):
    llm = LLM(folder, dtype="float32", max_model_len=64, block_size=32, max_logprobs=128, load_format=LOAD_FORMAT,
              worker_extension_cls=EXTENSION, additional_config={LOAD_FORMAT: 1}, **more)
    ask = lambda prompts, params, what: llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    found = [[scores for scores, _ in choice_scores(ask, asked)]]
    for path, op in cases:
        neurons = Neurons.load(Path(path))
        carry_out(llm, ask, 128, 64, neurons, Op.parse(op))
        found.append([scores for scores, _ in choice_scores(ask, asked)])
        gate(llm, neurons - neurons, Op.parse(op))
    found.append([scores for scores, _ in choice_scores(ask, asked)])
    print(json.dumps(found))

if __name__ == "__main__":
    main(*map(json.loads, sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "more",
    [{"distributed_executor_backend": "uni"}, {"tensor_parallel_size": 2, "enforce_eager": True}],
    ids=["compiled", "two ranks"],
)
def test_every_op_agrees_with_torch_hooks_and_can_be_taken_back(tmp_path: Path, more: dict[str, Any]) -> None:
    pytest.importorskip("vllm")
    model = t.build("llama", **WIDER)
    folder = t.save(model, tmp_path / "model")
    asked = [(t.tokens(n, seed=n), [20, 30, 40]) for n in (5, 17, 40)]
    engine = TorchEngine(load_model(folder, torch.float32), load_tokenizer(folder))
    expected, cases = [engine.score_choices(asked)], []
    for site in SITES:
        neurons = t.some_neurons(model, site)
        neurons.save(tmp_path / f"{site}.safetensors")
        for op in OPS:
            cases.append((str(tmp_path / f"{site}.safetensors"), op))
            engine.intervene(neurons, Op.parse(op))
            expected.append(engine.score_choices(asked))
    expected.append(expected[0])
    script = tmp_path / "ask.py"
    script.write_text(ASK)
    command = [sys.executable, str(script), *map(json.dumps, (folder, cases, asked, more))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-3, rtol=0)
    moved = [(torch.tensor(one) - torch.tensor(found[0])).abs().max() for one in found[1:-1]]
    assert min(moved) > 0.01
