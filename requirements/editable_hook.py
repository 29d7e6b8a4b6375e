"""Build hook: an editable install places the lm-eval start-up hook too, as the wheel does."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EditableHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            build_data["force_include_editable"] = {
                "harness/lmeval/startup.py": "_stance_harness_startup.py",
                "harness/lmeval/startup.pth": "_stance_harness_startup.pth",
            }
