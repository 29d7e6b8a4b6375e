"""What runs on a node of a cluster: one step, in the study's own folder where the node sees it, else in a folder of its own.

A node that does not see the study's disk is sent copies: of the models and folders that steps read, once, and of the run
folders that a step is made from, where that node did not make them. What it makes goes back as bytes.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness import __version__
from harness.checksums import MANIFEST
from harness.errors import InputError, ProofError
from harness.locks import NAME as LOCK
from harness.locks import locked, waiting_for

if TYPE_CHECKING:
    from harness.runs import Run

Packed = Mapping[str, bytes]  # path under a folder -> its content
LETTING_GO = 60.0  # seconds: a step is tried again while what was lost with its node may still be dying


class Read(NamedTuple):
    """A model or folder that steps read.

    Attributes:
        name: by which steps know it.
        path: where it lies on the driver's machine, `size` its bytes, to know it again on a node.
        title: how manifests name it.
        looked_up: whether a node may have it elsewhere: a model of the hub, or an embedded one.
    """

    name: str
    path: str
    size: int
    title: str
    looked_up: bool


@dataclass(frozen=True)
class Ground:
    """What the steps of one run have in common.

    Attributes:
        run: its name, for folders of its own on every node.
        root: the study's folder on the driver's machine; `seen`: a file in it, which nodes look for.
        shared: whether steps write into that folder.
        reads: what they read; `sent`: of those that some node lacks, a reference to each file.
        environment: set on the nodes where they do not say otherwise.
        argv: the driver's, which is what the steps' manifests give as their command.
    """

    run: str
    root: str
    seen: str
    shared: bool
    reads: tuple[Read, ...]
    sent: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, str]
    argv: tuple[str, ...]


class Node(NamedTuple):
    """What a node says of itself before the first step."""

    name: str
    version: str
    sees: bool
    lacks: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """What became of a step: its folder's files where the driver does not see them, or why there are none."""

    node: str = ""
    taken: float = 0.0
    seconds: float | None = None
    files: Packed | None = None
    error: InputError | ProofError | None = None


def get_ready(environment: Mapping[str, str], argv: Sequence[str]) -> None:
    """Load the libraries, which is most of what a process's first step takes."""
    from harness.process import settle

    for name, value in environment.items():
        os.environ.setdefault(name, value)
    sys.argv = list(argv)
    settle()
    import harness.steps  # noqa: F401


def look(ground: Ground) -> Node:
    """Whether this node sees the study's folder, and what it lacks of that which is read."""
    lacks = tuple(read.name for read in ground.reads if not _has(read))
    return Node(platform.node(), __version__, Path(ground.seen).is_file(), lacks)


def carry_out(
    work: Callable[..., Run | None], folder: str, after: Sequence[str], ground: Ground, *inputs: Made
) -> Made:
    """Make one step's folder, named from the study's. `after`: those it reads, whose files `inputs` hold where not shared.

    What a user has to put right comes back as a value, since trying again would not help; anything else is raised.
    """
    get_ready(ground.environment, ground.argv)
    from harness.placed import Copy, place

    place({read.name: Copy(_placed(read, ground), read.title) for read in ground.reads})
    runs = Path(ground.root) if ground.shared else scratch(ground.run) / "runs"
    begun = time.time()
    try:
        for name, one in zip(after, inputs, strict=True):
            _receive(one, runs / name)
        with locked(runs / folder, LETTING_GO):
            made = work(runs / folder, *(runs / name for name in after))
    except (InputError, ProofError) as error:
        return Made(platform.node(), error=error)
    taken = time.time() - begun
    if made is None:
        (runs / folder).rmdir()
        return Made(platform.node(), taken)
    files = None if ground.shared else packed(made.path)
    return Made(platform.node(), taken, made.manifest["seconds"], files)


def clean(run: str) -> None:
    """Remove what a run left on this node beside the study's own folder."""
    shutil.rmtree(scratch(run), ignore_errors=True)


def scratch(run: str) -> Path:
    """This node's folder for a run; several nodes on one machine have one each."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    return Path(tempfile.gettempdir()) / f"stance-{run}-{node[:12]}"


def packed(folder: Path) -> Packed:
    """All files of a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def unpack(files: Packed, folder: Path) -> None:
    """Write a folder's files; a manifest comes last, as wherever one is written."""
    from harness.files import replacing

    for name in sorted(files, key=lambda name: name == MANIFEST):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder / name) as part:
            part.write_bytes(files[name])


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder, or of a file."""
    if folder.is_file():
        return folder.stat().st_size
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _has(read: Read) -> bool:
    """Whether the same lies on this node: under its name, or at the driver's path."""
    try:
        found = Path(_own(read))
    except InputError:
        return False
    return found.exists() and size_of(found) == read.size


def _own(read: Read) -> str:
    """Where this node has it of its own.

    Raises:
        InputError: a model that is not on this node.
    """
    if not read.looked_up:
        return read.path
    from harness.models import resolve
    from harness.plan import without_download

    with without_download():
        return resolve(read.name)


def _placed(read: Read, ground: Ground) -> str:
    """Where what is read lies on this node, once it is there."""
    if read.name not in ground.sent:
        return _own(read)
    import ray

    from harness.runs import digest

    files = ground.sent[read.name]
    target = scratch(ground.run) / "reads" / digest([read.name, read.size])[:12] / Path(read.title).name
    _appear(target, target, lambda: dict(zip(files, ray.get(list(files.values())), strict=True)))
    return str(target)


def _receive(made: Made, folder: Path) -> None:
    """A run folder that a step reads, on this node."""
    if (files := made.files) is not None:
        _appear(folder, folder / MANIFEST, lambda: files)


def _appear(folder: Path, sign: Path, files: Callable[[], Packed]) -> None:
    """Write a folder unless its sign is there, whole or not at all, whoever else on this node is about to."""
    from harness.files import replacing_folder

    with waiting_for(folder):
        if not sign.exists():
            with replacing_folder(folder) as part:
                unpack(files(), part)
