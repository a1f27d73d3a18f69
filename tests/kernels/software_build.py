"""Builds the device in software, with the real kernels in it; what was built before is kept in build/software_cuda."""

from __future__ import annotations

import concurrent.futures
import fcntl
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels"
SOFTWARE = Path(__file__).parent / "software_cuda"
CACHE = ROOT / "build" / "software_cuda"

# As nvcc would: device code, no fused multiply-add.
_DEVICE = ["-D__CUDACC__", "-D__CUDA_ARCH__=900", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]
# Every access of a kernel becomes a call to memory.cpp.
_CHECKED = [
    "-fsanitize=kernel-address,alignment", "--param=asan-instrumentation-with-call-threshold=0",
    "--param=asan-stack=0", "--param=asan-globals=0",
]  # fmt: skip
_DEVICE_FILES = ("step_kernels.cpp", "network.cpp")
_RUNTIME_FILES = (
    "device.cpp",
    "device_threads.cpp",
    "fibers.cpp",
    "memory.cpp",
    "copies.cpp",
    "streams.cpp",
    "graph_run.cpp",
)


@dataclass(frozen=True)
class Build:
    """One way to build.

    Attributes:
        kernels: the folder of the real sources, or of a copy with a fault in it.
        sanitizer: "" for the checks of the device itself, or "address,undefined" or "thread".
        coverage: whether step.cu and cuda_graph.cpp count their lines, into files beside the objects.
        cuda_version: what the CUDA headers say of themselves to the files that ask.
        cache: where new files go; what is in `CACHE` is not built again.
    """

    kernels: Path = KERNELS
    sanitizer: str = ""
    coverage: bool = False
    cuda_version: int = 13000
    cache: Path = CACHE

    def module(self) -> Path:
        """The extension module."""
        return self._known("module", self._build_module)

    def program(self, source: Path) -> Path:
        """A program of its own, without Python, with the step of the CPU beside it."""
        return self._known(source.name, lambda: self._build_program(source))

    def _known(self, name: str, build: Callable[[], Path]) -> Path:
        """What was built of the very same files, without asking the compiler; else what is built now."""
        files = [path for folder in (self.kernels, SOFTWARE) for path in sorted(folder.rglob("*")) if path.is_file()]
        digest = hashlib.sha256(repr((self, name, sys.version, _nanobind_version())).encode())
        for path in [*files, Path(__file__)]:
            digest.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
        self.cache.mkdir(parents=True, exist_ok=True)
        note = self.cache / f"{digest.hexdigest()[:24]}.built"
        if note.exists() and (built := Path(note.read_text())).exists():
            return built
        with (self.cache / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # other workers of the same test run wait, and find it built
            built = build()
        note.write_text(str(built))
        return built

    def _build_module(self) -> Path:
        nanobind = Path(importlib.util.find_spec("nanobind").origin).parent
        python = [f"-isystem{sysconfig.get_path('include')}", f"-isystem{nanobind / 'include'}"]
        units = [
            *self._common_units(),
            *(self._unit(self.kernels / name, [*python, '-DDDPM_RT_CUDA_ARCHITECTURES="software"'])
              for name in ("cuda_bindings.cpp", "cuda_graph_bindings.cpp", "cuda_memory_bindings.cpp")),
            self._unit(SOFTWARE / "module.cpp", [*python, "-DNB_DOMAIN=software_cuda"]),
            self._unit(nanobind / "src" / "nb_combined.cpp", [
                *python, f"-isystem{nanobind / 'ext' / 'robin_map' / 'include'}", "-DNB_COMPACT_ASSERTIONS", "-w",
            ]),
        ]  # fmt: skip
        return self._link(units, "_software_kernels.so", ["-shared"])

    def _build_program(self, source: Path) -> Path:
        host = ["-fno-math-errno", "-fno-trapping-math"]
        units = [
            *self._common_units(),
            self._unit(self.kernels / "host_step.cpp", host),
            self._unit(self.kernels / "thread_pool.cpp", host),
            self._unit(self.kernels / "host_variant.cpp", [*host, "-DDDPM_RT_VARIANT=baseline"]),
            self._unit(source, []),
        ]
        return self._link(units, source.stem, [])

    def _common_units(self) -> list[tuple[list[str], Path]]:
        checks = _CHECKED if not self.sanitizer else []
        counts = ["--coverage"] if self.coverage else []
        version = [f"-DCUDART_VERSION={self.cuda_version}"]
        return [
            *(self._unit(SOFTWARE / name, [*_DEVICE, *checks, *counts]) for name in _DEVICE_FILES),
            *(self._unit(SOFTWARE / name, []) for name in _RUNTIME_FILES),
            self._unit(SOFTWARE / "graphs.cpp", version),
            self._unit(self.kernels / "cuda_graph.cpp", [*version, *counts]),
        ]

    def _unit(self, source: Path, options: list[str]) -> tuple[list[str], Path]:
        sanitizer = []
        if self.sanitizer == "thread":
            # The switches between fibers would be taken for races; it tells the sanitizer of them itself.
            own = source.name in ("fibers.cpp", "device_threads.cpp")
            sanitizer = ["-DSOFTWARE_MALLOC", "-DSOFTWARE_TSAN", *([] if own else ["-fsanitize=thread"])]
        elif self.sanitizer:
            # -O0: the optimizer takes longer over all the checks than everything else together.
            sanitizer = ["-DSOFTWARE_MALLOC", "-O0", f"-fsanitize={self.sanitizer}", "-fno-sanitize-recover=all"]
        flags = [
            "-std=c++17", "-O1", "-g1", "-fPIC", "-ftls-model=initial-exec", "-fvisibility=hidden", "-ffp-contract=off",
            "-Wall", "-Wextra", "-Wno-unused-function", f"-I{SOFTWARE}", f"-I{self.kernels}", *sanitizer, *options,
        ]  # fmt: skip
        return flags, source

    def _link(self, units: list[tuple[list[str], Path]], name: str, options: list[str]) -> Path:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(lambda unit: self._compile(*unit), units))
        if self.sanitizer:
            options = [*options, f"-fsanitize={self.sanitizer}"]
        options = [*options, *(["--coverage"] if self.coverage else [])]
        key = hashlib.sha256(repr((name, options, [str(each) for each in objects])).encode()).hexdigest()[:16]
        built = self.cache / key / name
        if not built.exists():
            built.parent.mkdir(exist_ok=True)
            part = built.with_suffix(".part")
            _run(_compiler(), *objects, *options, "-pthread", "-ldl", "-o", part)
            part.replace(built)
        return built

    def _compile(self, flags: list[str], source: Path) -> Path:
        """The object file; its name is a digest of all that it is made of."""
        headers = [path for folder in (self.kernels, SOFTWARE) for path in sorted(folder.glob("*.h"))]
        included = [self.kernels / "step.cu"] if source.name == "step_kernels.cpp" else []
        says = [flag for flag in flags if not flag.startswith("-I")]
        digest = hashlib.sha256(repr((_compiler_version(), _nanobind_version(), says, source.name)).encode())
        for path in [source, *included, *headers]:
            digest.update(path.read_bytes())
        key = digest.hexdigest()[:24]
        name = f"{source.stem}-{key}.o"
        built = self.cache / name
        if (CACHE / name).exists():
            return CACHE / name
        if not built.exists():
            part = built.with_suffix(f".{os.getpid()}.o")
            # Lines are counted in a file that is named after the object.
            _run(_compiler(), *flags, "-c", source, "-o", built if self.coverage else part)
            if part.exists():
                part.replace(built)
        return built


def _run(*command: object) -> bytes:
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr.decode(errors='replace')}")
    return done.stdout


def _compiler() -> str:
    found = shutil.which("g++")
    if found is None:
        pytest.skip("g++ is not installed: no device in software")
    return found


@functools.cache
def _nanobind_version() -> str:
    return importlib.metadata.version("nanobind")


@functools.cache
def _compiler_version() -> str:
    return _run(_compiler(), "--version").decode()


@functools.cache
def software_kernels() -> ModuleType:
    """The module, loaded once; DDPM_RT_SOFTWARE_KERNELS names another one, such as one with a fault in it."""
    path = os.environ.get("DDPM_RT_SOFTWARE_KERNELS") or str(Build().module())
    spec = importlib.util.spec_from_file_location("_software_kernels", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["_software_kernels"] = module
    spec.loader.exec_module(module)
    return module
