"""What is asked, from names, folders and files as a user gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.measure import Asked, check_tasks


def asking(
    tasks: Sequence[str] | None = None,
    limit: int | Mapping[str, int] | None = None,
    *,
    judge: str = "embedded",
    axes: Mapping[str, Any] | None = None,
    topics_dir: Sequence[str | Path] = (),
    data: str | Path | None = None,
    **sampling: Any,
) -> Asked:
    """What is asked, checked; `sampling` are further fields of `Asked`.

    Raises:
        InputError: anything that can be known to be wrong before a model is loaded.
    """
    from harness.sources import as_topics
    from harness.topics import GROUP, find_topics

    folders = [Path(folder) for folder in topics_dir]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--topics-dir {folder} is no folder; give a folder with topic files.")
    names = (GROUP,)
    if data is not None:
        made = as_topics(Path(data))
        folders.append(made)
        names = tuple(topic.task for topic in find_topics([made]).values())
    if isinstance(tasks, str):
        raise InputError(f"tasks is {tasks!r}; expected a list of task names, such as [{tasks!r}].")
    if tasks is not None:
        names = tuple(tasks)
    most = dict(limit) if isinstance(limit, Mapping) else limit
    asked = Asked(names, most, judge=judge, folders=tuple(folders), axes=dict(axes or {}), **sampling)
    check_tasks(asked)
    return asked
