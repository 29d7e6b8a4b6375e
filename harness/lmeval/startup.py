"""Start-up hook: makes `lm_eval --tasks political_stance` work without a flag.

lm-eval reads no entry points for tasks yet (its PR 4015 does). Installed beside a one-line `.pth` file, this module
puts one finder on `sys.meta_path` that waits for `lm_eval.tasks.manager` and then lets TaskManager see the folders
declared under the entry-point group `lm_eval.tasks`. It does nothing where lm-eval does so itself, and imports nothing
of lm-eval or of the harness before that moment. Standard library only: it runs at every interpreter start.
"""

import importlib.abc
import importlib.util
import sys

_TARGET = "lm_eval.tasks.manager"


class _AfterImport(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):  # type: ignore[no-untyped-def]
        if fullname != _TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):  # type: ignore[no-untyped-def]
            execute(module)
            try:
                from harness.lmeval.roots import install
            except ImportError:  # the harness was uninstalled or moved: lm-eval works as if it had never been there
                return
            install(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _AfterImport())
