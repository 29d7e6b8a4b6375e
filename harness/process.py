"""How a command's process behaves: libraries keep quiet, freed memory stays with the process, float32 takes the fast path.

Large logits are allocated and freed in every step; by default glibc maps and unmaps them each time, which cost a quarter
of the training time where it was measured (58.7 s against 43.1 s for one epoch of the demo).
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4

_QUIET = {
    "TQDM_DISABLE": "1",  # other libraries' bars; ours name their stage and are shown by harness.progress
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def command() -> list[str]:
    """What was typed to start this process: `stance ...`, or a script of the user's; empty in a notebook or at a prompt."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    if name in ("stance", "stance.exe"):
        return ["stance", *sys.argv[1:]]
    return ["python", *sys.argv] if name.endswith(".py") and "ipykernel" not in name else []


def settle() -> None:
    """Call once, before torch, tqdm or vLLM is imported. `STANCE_VERBOSE=1` leaves the libraries' output as it is."""
    if not os.environ.get("STANCE_VERBOSE"):
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        warnings.filterwarnings("ignore")
        logging.getLogger("vllm").setLevel(logging.ERROR)  # it warns before it reads its own level
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from the heap and not to shrink it; False where that cannot be said."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 256 * 2**20}
    return all(mallopt(option, value) == 1 for option, value in settings.items())


@cache
def quicken_float32() -> bool:
    """Let oneDNN compute torch's float32 matrix products on an x86 processor, where they stay float32; False where not.

    torch gives them to MKL, which reached half of oneDNN's rate on an AMD EPYC (benchmarks/float32_products.py). The
    switch allows bfloat16 within the product, which oneDNN uses where a processor has tile units; so a product is held
    against float64 first.
    """
    import torch

    onednn: Any = torch.backends.mkldnn
    if platform.machine().lower() not in ("x86_64", "amd64") or not onednn.is_available():
        return False
    setting = onednn.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    if _product_error() < 1e-5:  # bfloat16 is off by 1e-3
        return True
    setting.fp32_precision = before
    return False


def _product_error() -> float:
    """Largest error of a float32 matrix product against float64, as a share of its largest entry."""
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 1024, generator=generator) for _ in range(2))
    exact = a.double() @ b.double().T
    return float((a @ b.T - exact).abs().max() / exact.abs().max())
