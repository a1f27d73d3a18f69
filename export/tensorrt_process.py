"""The builder in a process of its own: some graphs crash it, and a crash there is an error here.

It also saves time: while the plan is built here, its network is verified in the process that asked for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from commands.errors import DeviceUnavailableError
from commands.signals import end_with_parent
from commands.whole_files import work_folder
from ddpm_rt.own_packages import command_of_own_process
from diffusion.errors import InputError
from export.tensorrt_build import Built, build_plan, check_operators
from export.tensorrt_options import BuildSettings, load_flavor
from runtime.formats.flavor import FLAVORS, Flavor

_NETWORK, _JOB, _RESULT, _PLAN = "network.onnx", "job.json", "result.json", "unet.plan"
_ERRORS: dict[str, type[Exception]] = {"input": InputError, "device": DeviceUnavailableError}


class BuildProcess:
    """A build that has begun; a context, at whose end it is over, one way or the other.

    Args:
        flavor: the builder.
        network: the ONNX file.
        settings: how the plan is built.
        source: what to call the network in an error.
        only_check: parse the network and build nothing.

    Raises:
        InputError: no room for the files that pass between the processes.
    """

    def __init__(
        self, flavor: Flavor, network: bytes, settings: BuildSettings, source: str, only_check: bool = False
    ) -> None:
        self._flavor, self._source = flavor, source
        self._work = contextlib.ExitStack()
        folder = self._folder = self._work.enter_context(work_folder())
        job = {"flavor": flavor.name, "settings": settings.to_json(), "source": source, "only_check": only_check}
        try:
            (folder / _NETWORK).write_bytes(network)
            (folder / _JOB).write_text(json.dumps(job), encoding="utf-8")
        except OSError as error:
            self._work.close()
            raise InputError(
                f"{folder}: the network cannot be written there for the builder ({error.strerror}); "
                "make room, or set TMPDIR to a folder with more"
            ) from error
        self._process = subprocess.Popen(
            command_of_own_process("export.tensorrt_process", str(folder), str(os.getpid())),
            stdin=subprocess.DEVNULL,
            stdout=2,  # whatever the builder prints is no result
            process_group=0,  # Ctrl-C reaches the process that asked, which ends this one
            restore_signals=False,  # what it says may have no reader
            env=os.environ | {"PYTHONPATH": os.pathsep.join(part or str(Path.cwd()) for part in sys.path)},
        )

    def __enter__(self) -> BuildProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._work.close()

    def wait(self) -> Built:
        """What was built.

        Raises:
            InputError, DeviceUnavailableError: as `build_plan` in the other process, or that process crashed.
        """
        fields = self._result()
        plan = self._folder / _PLAN
        return Built(plan=plan.read_bytes(), **fields | {"flags": tuple(fields["flags"])})

    def wait_for_check(self) -> None:
        """Raises as `wait`."""
        self._result()

    def _result(self) -> dict[str, Any]:
        code = self._process.wait()
        try:
            fields: dict[str, Any] = json.loads((self._folder / _RESULT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise InputError(
                f"{self._source}: {self._flavor.title} {ended} while it built the network; "
                "see --verbose, or export the network with --opset 18"
            ) from None
        if "error" in fields:
            raise _ERRORS[fields["error"]](fields["text"])
        return fields


def _run(folder: Path) -> dict[str, Any]:
    job = json.loads((folder / _JOB).read_text(encoding="utf-8"))
    flavor = FLAVORS[job["flavor"]]
    settings, network = BuildSettings.from_json(job["settings"]), (folder / _NETWORK).read_bytes()
    try:
        trt = load_flavor(flavor)
        if job["only_check"]:
            check_operators(trt, network, flavor.title, job["source"])
            return {}
        built = build_plan(trt, network, settings, job["source"])
        (folder / _PLAN).write_bytes(built.plan)
    except (InputError, DeviceUnavailableError) as error:
        kind = next(name for name, kind in _ERRORS.items() if isinstance(error, kind))
        return {"error": kind, "text": str(error)}
    except OSError as error:
        return {"error": "input", "text": f"{folder}: the plan cannot be written there ({error.strerror}); make room"}
    return {name: value for name, value in vars(built).items() if name != "plan"}


def main(folder: Path) -> None:
    """Do the job that lies in a folder, and leave its result there."""
    result = folder / (_RESULT + ".part")
    result.write_text(json.dumps(_run(folder)), encoding="utf-8")
    result.rename(folder / _RESULT)
    sys.stderr.flush()
    os._exit(0)  # nothing is left to be done, and a builder's own end may crash


if __name__ == "__main__":
    end_with_parent(int(sys.argv[2]))
    main(Path(sys.argv[1]))
