"""The kernels, built for the GPU that is here alone, beside the checkout and not into it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from benchmarks.device.findings import SkippedError

ROOT = Path(__file__).resolve().parents[2]
MODULE = "runtime._kernels"
_TREE = "kernels"
RECORD = "kernels.json"
"""In the work folder: which module was built."""
_CUDA_FOLDERS = ("/usr/local/cuda/bin", "/opt/cuda/bin")


def find_cuda_tool(name: str) -> str | None:
    """A program of the CUDA toolkit: on the PATH, in CUDA_HOME or CUDA_PATH, or where the toolkit is usually put."""
    homes = [os.environ[key] for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    folders = [*(f"{home}/bin" for home in homes), *_CUDA_FOLDERS]
    found = shutil.which(name)
    return found or shutil.which(name, path=os.pathsep.join(folders))


def configure_command(work_folder: Path, compute_capability: str, nvcc: str) -> list[str]:
    """CMake's first command: this Python, this GPU's machine code and no other.

    Args:
        work_folder: where the build tree goes.
        compute_capability: such as `9.0`.
        nvcc: the compiler.
    """
    command = ["cmake", "-S", str(ROOT), "-B", str(work_folder / _TREE), "-DCMAKE_BUILD_TYPE=Release"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    command += [f"-DCMAKE_CUDA_ARCHITECTURES={compute_capability.replace('.', '')}-real"]
    return [*command, "-G", "Ninja"] if shutil.which("ninja") else command


def build_kernels(work_folder: Path, compute_capability: str) -> Path:
    """Configure and build; what is up to date is not built again. Returns the module's file.

    Raises:
        RuntimeError: something that is needed is missing, or the build failed, with the end of what it said.
    """
    nvcc = find_cuda_tool("nvcc")
    if nvcc is None:
        raise RuntimeError("nvcc is not on the PATH, nor in CUDA_HOME or /usr/local/cuda")
    if shutil.which("cmake") is None:
        raise RuntimeError("cmake is not on the PATH")
    if importlib.util.find_spec("nanobind") is None:
        raise RuntimeError(f"{sys.executable} has no module nanobind")
    _run(configure_command(work_folder, compute_capability, nvcc))
    _run(["cmake", "--build", str(work_folder / _TREE), "--parallel"])
    built = sorted((work_folder / _TREE).glob("_kernels*.so"))
    if len(built) != 1:
        raise RuntimeError(f"the build left {len(built)} files _kernels*.so in {work_folder / _TREE}, expected one")
    (work_folder / RECORD).write_text(json.dumps({"module": str(built[0])}))
    return built[0]


def load_kernels(work_folder: Path) -> ModuleType:
    """The module that was built, from now on also what `runtime` imports in this process.

    Raises:
        SkippedError: it has not been built.
        ImportError: it does not load.
    """
    loaded = sys.modules.get(MODULE)
    record = work_folder / RECORD
    if not record.exists():
        raise SkippedError("the kernels were not built; see the stage `build`")
    path = json.loads(record.read_text())["module"]
    if loaded is not None:
        if loaded.__file__ != path:
            raise ImportError(f"{MODULE} was imported from {loaded.__file__} before {path} could be")
        return loaded
    import runtime

    # Loaded by its path, so that whatever is installed in this Python is not asked.
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[MODULE]
        raise
    runtime._kernels = module  # type: ignore[attr-defined]
    return module


def forget_build(work_folder: Path) -> None:
    """What was built before counts no longer, until it is built again."""
    (work_folder / RECORD).unlink(missing_ok=True)


def _run(command: list[str]) -> None:
    print("+", *command, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout, flush=True)
    if done.returncode:
        tail = " | ".join(line.strip() for line in done.stdout.strip().splitlines()[-6:])
        raise RuntimeError(f"{command[0]} {command[1]} ended with {done.returncode}: {tail}")
