"""Folders of weights that are made on first use and kept in the cache, named by what they were made from."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.models import cache_folder, load_tokenizer
from harness.runs import digest, write_json


def made_once(
    key: dict[str, Any], tokenizer: str, lineage: Sequence[str], make: Callable[[], tuple[Any, dict[str, Any] | None]]
) -> str:
    """The folder of a variant: the cached one, or what `make` returns (a model and what was changed in it), saved.

    The folder appears whole or not at all; whatever `make` raises leaves nothing behind.
    """
    target = cache_folder() / "variants" / digest(key)[:24]
    if (target / "manifest.json").is_file():
        return str(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        model, effect = make()
        model.save_pretrained(scratch)
        load_tokenizer(tokenizer).save_pretrained(scratch)
        written = {"kind": "variant", "spec": key, "effect": effect, "lineage": list(lineage)}
        write_json(scratch / "manifest.json", written)
        shutil.rmtree(target, ignore_errors=True)
        scratch.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return str(target)
