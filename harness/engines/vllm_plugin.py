"""What runs inside vLLM's processes: the load format `stance` and the worker's methods, found through entry points.

`VLLMEngine` asks for both; so does the stock command line:

    lm_eval --model vllm --model_args '{"pretrained": "M", "load_format": "stance", ...}'
"""

from __future__ import annotations

from typing import Any

LOAD_FORMAT = "stance"
EXTENSION = "harness.engines.vllm_plugin.StanceWorker"


def register() -> None:
    """Make the load format known; vLLM calls this in every process that it starts."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    if getattr(register, "done", False):
        return

    class GatedLoader(DefaultModelLoader):
        def __init__(self, load_config: Any) -> None:
            from dataclasses import replace

            super().__init__(replace(load_config, load_format="safetensors"))

        def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
            from vllm.config import CompilationMode

            from harness.engines.gates import add_gates
            from harness.errors import InputError

            model: Any = super().load_model(vllm_config, model_config, prefix)
            try:
                add_gates(model, vllm_config.compilation_config.mode != CompilationMode.NONE)
            except InputError as error:  # it can still be measured; only an intervention is refused, with this reason
                model.stance_refusal = str(error)
            return model

    register_model_loader(LOAD_FORMAT)(GatedLoader)
    register.done = True  # type: ignore[attr-defined]


class StanceWorker:
    """Mixed into vLLM's worker; every method is called by name through `collective_rpc` with plain values."""

    model_runner: Any

    def stance_gate(self, site: str, layers: list[list[int]], numbers: list[dict[str, Any]]) -> int:
        """Set a site's gates: neurons and their five numbers, by layer. Returns the neurons this rank holds."""
        from harness.engines.gates import gates

        found = gates(self.model_runner.get_model(), site)
        if len(found) != len(layers):
            raise ValueError(f"{len(layers)} layers of neurons for {len(found)} layers of the model")
        return sum(gate.set(chosen, one) for gate, chosen, one in zip(found, layers, numbers, strict=True))

    def stance_effect(self, site: str) -> float:
        """Largest |change| a site's gates made since they were set; ends the measuring, which costs time."""
        from harness.engines.gates import gates

        largest = 0.0
        for gate in gates(self.model_runner.get_model(), site):
            largest, gate.proving = max(largest, gate.largest), False
        return largest

    def stance_swap(self, folder: str) -> None:
        """Load another folder's weights into the running model."""
        self.model_runner.reload_weights(weights_path=folder)
        model = self.model_runner.get_model()
        if self.model_runner.model_config.hf_text_config.tie_word_embeddings:
            _repack_head(model)

    def stance_plain_head(self) -> int:
        """Take vLLM's LoRA off the logits, which fails at prompt log-probabilities; adapters of the head are refused."""
        model = self.model_runner.get_model()
        wrapped = [name for name, module in model.named_modules() if type(module).__name__ == "LogitsProcessorWithLoRA"]
        for name in wrapped:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, model.get_submodule(name).base_layer)
        return len(wrapped)


def _repack_head(model: Any) -> None:
    """On a CPU vLLM multiplies by a packed copy of the head, which a reload of tied weights leaves as it was."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False)
