"""Where topic files are looked for, and how lm-eval's TaskManager is shown them.

Folders, in order: the packaged one, those of other installed packages (entry points `lm_eval.tasks`), those named in
the environment variable STANCE_TOPICS (separated as in PATH), and those given to the command (`--include_path`).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.documents import inside, read_mapping
from harness.errors import InputError
from harness.placed import here
from harness.topics import GROUP, LM_EVAL_CLASS, all_topics, is_topic_file, load_topic

if TYPE_CHECKING:
    from types import ModuleType

    from lm_eval.tasks import TaskManager

_given: list[Path] = []


def packaged_root() -> Path:
    """The folder with everything that is asked, in a wheel as in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_tasks"
    return installed if installed.is_dir() else package.parent / "tasks"


def standing_roots() -> list[Path]:
    """Folders that need no flag: packaged, declared by installed packages, and STANCE_TOPICS.

    Raises:
        InputError: STANCE_TOPICS names something that is not a folder.
    """
    roots = [packaged_root()]
    for entry in entry_points(group="lm_eval.tasks"):
        target = entry.load()
        folder = target() if callable(target) else getattr(target, "__path__", [target])[0]
        roots.append(Path(str(folder)))
    for name in filter(None, os.environ.get("STANCE_TOPICS", "").split(os.pathsep)):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise InputError(f"STANCE_TOPICS names {name!r}, which is not a folder; give folders with topic files.")
        roots.append(folder)
    return list(dict.fromkeys(root.resolve() for root in roots))


def all_roots() -> list[Path]:
    """Standing folders and those the current command was given."""
    return list(dict.fromkeys([*standing_roots(), *(p.resolve() for p in _given)]))


def task_manager(
    folders: list[Path] | None = None, judge: str = "embedded", axes: dict[str, Any] | None = None
) -> TaskManager:
    """lm-eval's TaskManager over our folders only (fast: lm-eval's own thousands of files are not read).

    Raises:
        InputError: a broken topic file, or in `folders` a task file that is no topic; found before any model is loaded.
    """
    from lm_eval.tasks import TaskManager

    given = [Path(here(folder)) for folder in folders or []]
    for folder in given:
        _topics_alone(folder)
    all_topics([*standing_roots(), *given])
    _given[:] = given
    roots: list[str | Path] = list(all_roots())
    metadata: dict[str, Any] = {"judge": judge, "axes": axes}
    manager = TaskManager(include_defaults=False, include_path=roots, metadata=metadata)
    return add_formats(manager)


def _topics_alone(folder: Path) -> None:
    """lm-eval runs what a task file names, in its own folder or in a template: a folder that was given holds topics alone.

    Raises:
        InputError: a task file that is neither a topic nor a group of topics, or one that cannot be read.
    """
    for path in sorted(folder.glob("**/*.yaml")):
        if not path.is_file() or is_topic_file(path):
            continue
        keys = read_mapping(inside(path, folder), "file")
        if GROUP in (keys.get("task"), keys.get("group")):
            continue  # `add_formats` says what it would replace
        group = {"class": LM_EVAL_CLASS.replace("TopicGroup", "AllTopics"), "task": keys.get("task")}
        if {"class", "group", "task", "include"} & set(keys) and keys != group:
            raise InputError(
                f"{path} is a task file of lm-eval's own, which may run code; --topics-dir takes topic files alone. If you "
                "trust its folder, name it in the environment variable STANCE_TOPICS; else remove the file."
            )


def add_formats(manager: TaskManager) -> TaskManager:
    """List `political_stance_TOPIC_FORMAT` beside each topic, so that one format can be asked for by name."""
    from harness.lmeval.tasks import FORMAT_TASKS

    index: dict[str, Any] = manager.task_index
    group = index.get(GROUP)
    if group is not None and packaged_root() not in Path(group.yaml_path).resolve().parents:
        raise InputError(
            f"{group.yaml_path} defines {GROUP!r}, which would replace the packaged group and its topics; give your own "
            "group another name. A topic file needs no group: it joins by itself."
        )
    for name, entry in list(index.items()):
        if not entry.yaml_path or "::" in name or not is_topic_file(Path(entry.yaml_path)):
            continue
        for kind in load_topic(entry.yaml_path).formats:
            task = f"{name}_{kind}"
            config = {"task": task, "class": FORMAT_TASKS[kind], "metadata": {"topic_file": str(entry.yaml_path)}}
            index.setdefault(task, dataclasses.replace(entry, name=task, yaml_path=None, cfg=config))
    manager._all_tasks = sorted(index)
    manager._all_subtasks = sorted(set(index) - set(manager.all_groups) - set(manager.all_tags))
    return manager


def install(module: ModuleType) -> None:
    """Make `module.TaskManager` (lm-eval's) see our folders; called once by the start-up hook."""
    # vLLM's CPU build asks for nine tenths of the machine's memory unless told how much its cache may take (GiB), and
    # does not start where less is free. It reads this when it starts; a value that is set stays, and a GPU ignores it.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    _register_model()
    if hasattr(module, "discover_plugin_task_paths"):
        return
    init = module.TaskManager.__init__

    @functools.wraps(init)
    def with_roots(
        self: Any, *args: Any, include_path: Any = None, include_defaults: bool = True, **kwargs: Any
    ) -> None:
        given = include_path if isinstance(include_path, (list, tuple)) else [include_path] if include_path else []
        _given[:] = [Path(p) for p in given]
        standing = [r for r in standing_roots() if r not in {Path(p).resolve() for p in given}]
        # include_defaults=False asks for exactly the folders given.
        paths = [*standing, *given] if include_defaults else list(given)
        init(self, *args, include_path=paths or None, include_defaults=include_defaults, **kwargs)
        add_formats(self)

    module.TaskManager.__init__ = with_roots


def _register_model() -> None:
    """Let lm-eval's command line know `--model stance-vllm`; loaded when it is asked for."""
    import lm_eval.models  # noqa: F401  (lm-eval fills its registry only while that is empty)
    from lm_eval.api.registry import model_registry

    if "stance-vllm" not in model_registry:
        model_registry.register("stance-vllm", target="harness.lmeval.stance_vllm:StanceVLLM")
