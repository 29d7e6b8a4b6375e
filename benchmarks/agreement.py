"""vLLM against Torch: the largest difference of option log-probabilities, for every op at every site.

    python benchmarks/agreement.py --probes 200

Asked are the packaged questions, answered by one of four letters. Two engines cannot agree better than one engine agrees
with itself, so beside "no op" stands the Torch engine under two attention kernels; and beside that, each engine in bfloat16
against float32, which is what rounding costs. Differences are in nats.
"""

from __future__ import annotations

from typing import Any

import torch
from common import arguments, publish, questions, some

from harness.engines import Engine, Settings
from harness.engines.torch import TorchEngine
from harness.engines.vllm import VLLMEngine
from harness.interventions import Op
from harness.models import resolve
from harness.sites import SITES

OPS = ("zero", "scale=2", "constant=0.3", "range=-0.05:0.05:0")


def differences(what: str, one: torch.Tensor, other: torch.Tensor) -> dict[str, Any]:
    """A row: the largest difference, that of the 99th percentile, and the mean one."""
    apart = (one - other).abs().flatten()
    return {
        "compared": what,
        "largest": float(apart.max()),
        "99th percentile": float(apart.quantile(0.99)),
        "mean": float(apart.mean()),
    }


def scores(engine: Engine, asked: list[Any]) -> torch.Tensor:
    """Log-probabilities, questions by options."""
    return torch.tensor(engine.score_choices(asked))


def compare(
    folder: str, dtype: str, probes: int, exact: torch.Tensor | None = None
) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """The rows of a dtype, and the Torch engine's answers without any op. `exact`: those in float32."""
    served = VLLMEngine(folder, Settings(dtype=dtype, max_length=512))
    hooked = TorchEngine.from_folder(folder, Settings(dtype=dtype, max_length=512))
    letters = [served.tokenizer.convert_tokens_to_ids(x) for x in "ABCD"]
    asked = [(ids, letters) for ids in questions(served.tokenizer, probes)]
    mine, other = scores(served, asked), scores(hooked, asked)
    rows = [differences("no op", mine, other)]
    used: Any = hooked.model.config._attn_implementation
    hooked.model.set_attn_implementation("eager" if used == "sdpa" else "sdpa")
    rows.append(differences("Torch with itself, attention sdpa and eager", scores(hooked, asked), other))
    hooked.model.set_attn_implementation(used)
    if exact is not None:
        rows.append(differences("vLLM with Torch in float32", mine, exact))
        rows.append(differences("Torch with Torch in float32", other, exact))
    for site in SITES:
        neurons = some(hooked.model, site)
        for op in map(Op.parse, OPS):
            for engine in (served, hooked):
                engine.intervene(neurons, op)
            rows.append(differences(f"{op} at {site}", scores(served, asked), scores(hooked, asked)))
    served.close()
    hooked.close()
    return [{"dtype": dtype, **row} for row in rows], other


def main() -> None:
    given = arguments(__doc__ or "", model="smollm2-135m-instruct", probes=200)
    folder = resolve(given.model)
    float32, exact = compare(folder, "float32", given.probes)
    bfloat16, _ = compare(folder, "bfloat16", given.probes, exact)
    publish("agreement", [*float32, *bfloat16], given.out, model=given.model, probes=given.probes)


if __name__ == "__main__":
    main()
