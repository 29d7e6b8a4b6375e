"""How a command's process behaves: libraries keep quiet, and freed memory stays with the process.

Large logits are allocated and freed in every step; by default glibc maps and unmaps them each time, which cost a quarter
of the training time where it was measured (58.7 s against 43.1 s for one epoch of the demo).
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import warnings

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4

_QUIET = {
    "TQDM_DISABLE": "1",  # other libraries' bars; ours name their stage and are shown by harness.progress
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


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
