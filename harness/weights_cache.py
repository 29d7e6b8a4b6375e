"""Folders of weights that are made on first use and kept in the cache, named by what they were made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.checksums import check_files, digest, write_manifest
from harness.documents import read_object
from harness.errors import InputError
from harness.files import check_schema, replacing_folder
from harness.locks import waiting_for
from harness.models import cache_folder, load_tokenizer

SCHEMA = 2


def made_once(
    key: dict[str, Any], tokenizer: str, lineage: Sequence[str], make: Callable[[], tuple[Any, dict[str, Any] | None]]
) -> str:
    """The folder of a variant: the cached one, or what `make` returns (a model and what was changed in it), saved.

    The folder appears whole or not at all; whatever `make` raises leaves nothing behind. One whose files have changed is made
    again, as is one of another release.

    Raises:
        InputError: the cache cannot be written; besides what `make` raises.
    """
    target = cache_folder() / "variants" / digest(key)[:24]
    with waiting_for(target):
        if not _usable(target):
            with replacing_folder(target) as scratch:
                model, effect = make()
                model.save_pretrained(scratch)
                load_tokenizer(tokenizer).save_pretrained(scratch)
                written = {"schema": SCHEMA, "kind": "variant", "spec": key, "effect": effect, "lineage": list(lineage)}
                write_manifest(scratch, written)
    return str(target)


def _usable(target: Path) -> bool:
    if not target.is_dir():
        return False
    try:
        manifest = read_object(target / "manifest.json")
        check_schema(target, manifest.get("schema"), SCHEMA, "remove it")
        check_files(target, manifest)
    except InputError:
        return False
    return True
