"""What a finished folder's files must be, byte for byte: their checksums stand in its manifest, and loading compares.

A file is read once per process for it, and never again while its size and time stay. Weights beside a config.json have one
checksum together, the `weights_hash` that names a model everywhere, so that loading a model reads nothing twice.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.documents import read_object
from harness.errors import InputError
from harness.files import sync, writable, write_json

MANIFEST, BEGUN = "manifest.json", "unfinished.json"
PASSING = {MANIFEST, BEGUN, "answers.parquet", "answers.json"}  # not of the finished folder, or not of its content


def digest(value: Any) -> str:
    """SHA-256 of a value as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    stamp = path.stat()
    return _file_hash(str(path), stamp.st_size, stamp.st_mtime_ns)


def weights_hash(folder: str) -> str:
    """SHA-256 over the folder's safetensors files and config, in name order."""
    files = sorted([*Path(folder).glob("*.safetensors"), Path(folder) / "config.json"])
    stamps = tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file())
    return _weights_hash(stamps)


@lru_cache(maxsize=1024)
def _file_hash(name: str, _size: int, _time: int) -> str:
    with Path(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=64)
def _weights_hash(stamps: tuple[tuple[str, int, int], ...]) -> str:
    summed = hashlib.sha256()
    for name, *_ in stamps:
        with Path(name).open("rb") as file:
            summed.update(Path(name).name.encode())
            for block in iter(lambda: file.read(1 << 22), b""):
                summed.update(block)
    return summed.hexdigest()


def seal(folder: Path, beside: dict[str, list[int]] | None = None) -> dict[str, Any]:
    """Checksums of a folder's files, for its manifest; the files are on the disk when this returns.

    `beside`: name -> size and time of files that are somebody else's, as long as they are the same.
    """
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or any(part.startswith(".") for part in Path(name).parts) or name in PASSING:
            continue
        if (beside or {}).get(name) == stamp(path):
            continue
        sync(path)
        files[name] = {"bytes": path.stat().st_size}
        if not _of_weights(folder, name):
            files[name]["sha256"] = file_hash(path)
    sync(folder)
    weights = {"weights_hash": weights_hash(str(folder))} if any(_of_weights(folder, name) for name in files) else {}
    return {"files": files, **weights}


def own_checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its `checksum`."""
    return digest({key: value for key, value in manifest.items() if key != "checksum"})


def write_manifest(folder: Path, said: dict[str, Any], beside: dict[str, list[int]] | None = None) -> None:
    """Seal a folder and write its manifest, with what is said besides; the folder is finished from here on.

    Raises:
        InputError: the disk is full or closed; the folder is then not finished.
    """
    with writable(folder):
        sealed = {**said, **seal(folder, beside)}
    manifest = json.loads(json.dumps(sealed, default=str))
    write_json(folder / MANIFEST, {**manifest, "checksum": own_checksum(manifest)})


def stamp(path: Path) -> list[int]:
    """Size and time of a file."""
    return [path.stat().st_size, path.stat().st_mtime_ns]


def changed(folder: Path, manifest: dict[str, Any]) -> str:
    """The first file that is not what the manifest says, and how it differs; empty where all are."""
    files = manifest.get("files")
    if manifest["checksum"] != own_checksum(manifest) or not isinstance(files, dict):
        return f"{MANIFEST} has changed"
    for name, known in files.items():
        path = folder / name
        if not isinstance(known, dict) or "bytes" not in known or ".." in Path(name).parts or Path(name).is_absolute():
            return f"{MANIFEST} says nothing that can be checked of {name[:60]!r}"
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != known["bytes"]:
            return f"{name} has {size} bytes instead of {known['bytes']}"
        if "sha256" in known and file_hash(path) != known["sha256"]:
            return f"the content of {name} has changed"
    if "weights_hash" in manifest and weights_hash(str(folder)) != manifest["weights_hash"]:
        return "config.json or the weights (*.safetensors) have changed"
    return ""


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Compare a folder with its manifest's checksums; one without a `checksum` of its own (older, or not ours) has none.

    Raises:
        InputError: a file is missing, truncated or altered.
    """
    if "checksum" not in manifest or "kind" not in manifest:
        return
    if how := changed(folder, manifest):
        command = manifest.get("command")
        again = f" ({' '.join(map(str, command))})" if isinstance(command, list) and command else ""
        raise InputError(
            f"{folder} is not as it was finished: {how}. What it holds cannot be believed: put that file back, or remove the "
            f"folder and give its command again{again}."
        )


def intact(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that a model, an adapter or neurons are taken from; empty where it has none.

    Raises:
        InputError: its run was not finished, its manifest cannot be read, or a file is not what it was.
    """
    file = folder / MANIFEST
    if not file.is_file():
        if _half_made(folder):
            raise InputError(
                f"{folder} holds a run that was not finished, so nothing in it can be believed: give the command that "
                "makes it again; it goes on where it stopped."
            )
        return {}
    manifest = read_object(file)
    check_files(folder, manifest)
    return manifest


def _half_made(folder: Path) -> bool:
    """Whether a run is being made there that has written weights or neurons, or is yet to."""
    if not (folder / BEGUN).is_file():
        return False
    beside, tensors = read_object(folder / BEGUN).get("beside", {}), list(folder.glob("*.safetensors"))
    return not tensors or any(beside.get(path.name) != stamp(path) for path in tensors)


def _of_weights(folder: Path, name: str) -> bool:
    model = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return model and (name == "config.json" or (name.endswith(".safetensors") and "/" not in name))
