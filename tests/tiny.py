"""Tiny random models of every supported architecture, and a local tokenizer: everything a test needs, offline."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.neurons import Neurons
from harness.sites import check_site, mlps, width

HIDDEN, INTERMEDIATE, LAYERS, VOCAB, PAD, EOS = 32, 48, 3, 128, 0, 1
SMALL = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
SLIDING = {**SMALL, "sliding_window": 6}
OTHER_NAMES = {
    "gemma2": SLIDING,
    "mistral": SLIDING,
    "gemma3": {**SLIDING, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gpt2": {"n_embd": HIDDEN, "n_inner": INTERMEDIATE, "n_layer": LAYERS, "n_head": 4, "n_positions": 64},
    "gpt_neox": {k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "head_dim")},
    "phi3": {k: v for k, v in SLIDING.items() if k != "head_dim"},
}
CLASSES = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma2",
    "gemma3": "Gemma3",
    "mistral": "Mistral",
    "phi3": "Phi3",
    "gpt_neox": "GPTNeoX",
    "gpt2": "GPT2",
}
ARCHITECTURES = tuple(CLASSES)
CHAT = (
    "{% for m in messages %}{{ '<user>' if m.role == 'user' else '<bot>' }}{{ m.content }}{{ '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bot>' }}{% endif %}"
)
PAIRS = [{"prompt": f"Why {n}?", "completion": f"{n} is so"} for n in range(8)]


def build(name: str, seed: int = 0, **changes: Any) -> Any:
    """A model with random weights and random biases, in float32 and eval mode."""
    prefix = CLASSES[name]
    config_class = getattr(transformers, "Gemma3TextConfig" if name == "gemma3" else f"{prefix}Config")
    ids = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": EOS, "eos_token_id": EOS}
    config = config_class(**{**OTHER_NAMES.get(name, SMALL), "initializer_range": 0.3, **ids, **changes})
    torch.manual_seed(seed)
    model = getattr(transformers, prefix + ("LMHeadModel" if name == "gpt2" else "ForCausalLM"))(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.float().eval()


def with_other_mlps(model: Any, seed: int = 5) -> Any:
    """A copy that differs in the MLPs' projections alone."""
    other = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for key, parameter in other.named_parameters():
            if ".mlp." in key:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return other


def tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, VOCAB, (count,), generator=generator).tolist()


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: one printable ASCII character, one token."""
    symbols = ["<pad>", "<eos>", "<user>", "<bot>", *map(chr, range(33, 127)), "\u0120", "\u010a"]
    symbols += [chr(n) for n in (*range(161, 173), *range(174, 190))]  # lone high bytes, to fill the vocabulary
    inner = Tokenizer(models.BPE({symbol: n for n, symbol in enumerate(symbols)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")
    made.add_special_tokens({"additional_special_tokens": ["<user>", "<bot>"]})
    if chat:
        made.chat_template = CHAT
    return made


def save(model: Any, folder: Path, chat: bool = False) -> str:
    model.save_pretrained(folder)
    tokenizer(chat).save_pretrained(folder)
    return str(folder)


def some_neurons(model: Any, site: str, share: float = 0.25, seed: int = 0, made_in: str = "m") -> Neurons:
    """Random neurons of every layer of a model."""
    layers, site_width = len(mlps(model)), width(model, check_site(site))
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(layers, site_width, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(site_width, generator=generator)[: int(share * site_width)]] = True
    return Neurons(mask, check_site(site), made_in)
