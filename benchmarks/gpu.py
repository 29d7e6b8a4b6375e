"""Rates on a GPU, without weights: a random model in the shape of Llama-3.1-8B, built on the device in bfloat16.

    python benchmarks/gpu.py                 # CUDA; 80 GB for all of it, or fewer --layers
    python benchmarks/gpu.py --shape tiny    # whether this script runs, on any machine

Three uses: PNLAC's contrast of a model with its adapter, scoring with 5% of the neurons patched from a second model, and LoRA
training with 5% of the neurons held, beside the same without. Arithmetic counted: 2 per weight of the decoder blocks, token
and forward pass, as many again for a backward pass through frozen weights; attention's own products are left out, so shares
are lower bounds. The share is of the rate that the device reaches on a plain matrix product of the MLP's shape, and of the
data sheet's dense bfloat16 peak where the device is known.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from common import arguments, matrix_product, median, publish
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainerCallback, TrainingArguments

from harness.contrast import Sequence, contrast
from harness.engines import Settings
from harness.engines.torch import TorchEngine
from harness.hold import Hold
from harness.interventions import DonorPatch
from harness.models import device
from harness.neurons import Neurons
from harness.recipe import lora_targets
from harness.sites import decoder_layers, mlps

SHAPES = {
    "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128256),
    "tiny": (64, 128, 2, 4, 2, 512),
}
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "L40S": 362e12}  # dense bf16 FLOP/s, NVIDIA's data sheets


def build(shape: str, layers: int, where: str) -> Any:
    """A random Llama on the device, and the number of weights in its blocks."""
    hidden, wide, deep, heads, key_value, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers or deep,
        num_attention_heads=heads,
        num_key_value_heads=key_value,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    with torch.device(where):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def timed(work: Callable[[], Any], rounds: int) -> float:
    """Median seconds, after one round to warm up."""
    taken = []
    for number in range(rounds + 1):
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number:
            taken.append(time.perf_counter() - begun)
    return median(taken)


def step_seconds(model: Any, length: int, batch: int, steps: int, hold: Neurons | None) -> float:
    """Median seconds of a LoRA training step on random tokens, with the neurons held or not."""
    keeper = Hold(model, hold) if hold is not None else None
    trained: Any = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=lora_targets(model)))
    if keeper:
        keeper.attach(trained)
    ids = torch.randint(0, model.config.vocab_size, (batch * steps, length))
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as scratch:
        settings = TrainingArguments(
            scratch,
            per_device_train_batch_size=batch,
            max_steps=steps,
            learning_rate=1e-4,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=device() == "cpu",
        )
        data: Any = [{"input_ids": row, "labels": row} for row in ids]
        Trainer(trained, settings, train_dataset=data, callbacks=[*([keeper] if keeper else []), Clock()]).train()
    if keeper:
        keeper.detach()
    trained.unload()
    return median([b - a for a, b in pairwise(times[2:])])


def main() -> None:
    given = arguments(
        __doc__ or "", shape="llama-3.1-8b", layers=0, prompts=512, length=128, batch=16, steps=12, rounds=3
    )
    where = device()
    model = build(given.shape, given.layers, where)
    weights = sum(p.numel() for p in decoder_layers(model).parameters())
    down = mlps(model)[0].down
    product, work = matrix_product(torch.bfloat16, down.inputs, down.outputs, where)
    rate = work / timed(product, given.rounds)
    name = torch.cuda.get_device_name() if where == "cuda" else "CPU"
    sheet = next((peak for key, peak in PEAKS.items() if key in name), None)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(model.config.num_hidden_layers, down.inputs, generator=generator) < 0.05
    prompts = torch.randint(0, model.config.vocab_size, (given.prompts, given.length), generator=generator).tolist()
    asked = given.prompts * given.length
    rows = []

    def report(way: str, seconds: float, tokens: int, passes: int) -> None:
        speed = 2 * passes * weights * tokens / seconds
        share = {"share of data sheet": speed / sheet} if sheet else {}
        rows.append({"way": way, "tokens/s": tokens / seconds, "share of matrix rate": speed / rate, **share})

    plain = step_seconds(model, given.length, given.batch, given.steps, None)
    held = step_seconds(model, given.length, given.batch, given.steps, Neurons(chosen, "mlp_act", "random"))
    report("LoRA training, plain", plain, given.batch * given.length, 2)
    report("LoRA training, held", held, given.batch * given.length, 2)

    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.01)
    patch = DonorPatch(Neurons(chosen, "mlp_act", "random"))
    tokenizer: Any = SimpleNamespace(pad_token_id=0)
    engine = TorchEngine(model, tokenizer, Settings(dtype="bfloat16", batch_tokens=16384), donor=other, patch=patch)
    choices = [(prompt, [1, 2, 3, 4]) for prompt in prompts]
    report("patched scoring", timed(lambda: engine.score_choices(choices), given.rounds), asked, 2)
    engine.close()
    del engine, other

    model.add_adapter(LoraConfig(r=16, target_modules=lora_targets(model), init_lora_weights=False))
    sequences = [Sequence(prompt) for prompt in prompts]
    seconds = timed(lambda: contrast(model, model, sequences, "mlp_act", batch_tokens=8192), given.rounds)
    report("PNLAC contrast, adapter off and on", seconds, asked, 2)
    about = {"shape": given.shape, "layers": model.config.num_hidden_layers, "tokens": asked, "device": name}
    publish("gpu", rows, given.out, **about, bf16_matrix_tflops=rate / 1e12)
    print(f"{name}: {rate / 1e12:.3g} TFLOP/s on a matrix product; a held step takes {held / plain:.3f} of a plain one")


if __name__ == "__main__":
    main()
