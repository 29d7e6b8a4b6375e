from __future__ import annotations

import os
import subprocess
import sys


def test_a_bar_keeps_time_where_other_libraries_bars_are_off() -> None:
    # vLLM divides by the elapsed time of the bar it is handed.
    code = "from harness.process import settle; settle(); from harness.progress import bar; b = bar(total=2, what='x'); print(b.disable)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "False"
    assert done.stderr == ""
