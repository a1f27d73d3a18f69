"""One stage in a process of its own: what it loads, breaks or hangs on stays in it.

    python -m benchmarks.gpu_check.stage_process REQUEST

The request is a JSON file; the findings are written to the file that it names, whole, whenever there are new ones.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.context import StageContext, StageSkippedError
from commands.errors import DeviceUnavailableError
from commands.whole_files import write_whole_text

STATUSES = ("passed", "failed", "error", "timeout", "skipped")


def run_stage(request: dict[str, Any]) -> dict[str, Any]:
    """Run the function that the request names; return what is in the result file at its end.

    Args:
        request: `function` (`module:function`), `arguments`, `work_folder` and `result`.
    """
    result = Path(request["result"])
    latest: dict[str, Any] = {}

    def publish(findings: dict[str, Any]) -> None:
        latest.update(findings)
        write_whole_text(result, json.dumps({"status": "running", **latest}, allow_nan=False))

    context = StageContext(Path(request["work_folder"]), publish)
    module, _, name = request["function"].partition(":")
    reason = ""
    try:
        run: Callable[..., None] = getattr(importlib.import_module(module), name)
        run(context, **request["arguments"])
        status = "passed"
    except (StageSkippedError, DeviceUnavailableError) as error:
        status, reason = "skipped", str(error)
    except Exception as error:
        traceback.print_exc()
        status, reason = "error", f"{type(error).__name__}: {error}"
    failed = context.failed_checks
    if failed:  # also where the rest was skipped, or broke
        found = f"{len(failed)} checks: {'; '.join(failed[:3])}{'; …' if len(failed) > 3 else ''}"
        status, reason = "failed", f"{found}; {reason}" if reason else found
    final = {**latest, "status": status, "reason": " ".join(reason.split()), "clocks": clocks_now()}
    write_whole_text(result, json.dumps(final, allow_nan=False))
    return final


def clocks_now() -> str | None:
    """The GPU's clocks and temperature just after the work, as nvidia-smi prints them; None without it."""
    query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,temperature.gpu", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


if __name__ == "__main__":
    run_stage(json.loads(Path(sys.argv[1]).read_text()))
