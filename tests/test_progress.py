from __future__ import annotations

import os
import subprocess
import sys

CODE = """
from harness.process import settle
settle()
from harness.progress import bar
print(bar(total=2, what="x").disable)
"""


def test_a_bar_keeps_time_where_other_libraries_bars_are_off() -> None:
    # vLLM divides by the elapsed time of the bar it is handed.
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "False"
    assert done.stderr == ""
