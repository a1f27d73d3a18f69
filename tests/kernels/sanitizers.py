"""`make sanitizers`: the tests of the C++ extension under the sanitizers of addresses, undefined behaviour and threads.

The extension is built once for each, without CUDA: the same chains on a device in software, its kernels among them, run
under the same sanitizers in tests/kernels/test_software_device.py, which is run too.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILDS = ROOT / "build" / "sanitizers"
SUPPRESSIONS = Path(__file__).with_name("thread_sanitizer.supp")
HOST_TESTS = (
    "tests/kernels/test_noise.py",
    "tests/kernels/test_host_step.py",
    "tests/kernels/test_host_step_buffers.py",
)
# Of processes of their own, which it counts the threads of: the sanitizer of threads has one too.
COUNTS_THREADS = ("--deselect", "tests/kernels/test_noise.py::test_helpers_are_begun_only_for_work_that_is_worth_it")
CHAIN_TESTS = ("tests/runtime/chain/test_host.py",)


@dataclass(frozen=True)
class Sanitizer:
    """A way to build and to run.

    Attributes:
        flags: of the compiler.
        libraries: that must be loaded before Python is.
        options: environment variables of the sanitizer.
        tests: that are run: arguments of pytest.
    """

    flags: str
    libraries: tuple[str, ...]
    options: dict[str, str]
    tests: tuple[str, ...]


SANITIZERS = {
    # Python itself leaves memory to the end of the process, and so do the libraries that it loads.
    "address": Sanitizer(
        "-fsanitize=address,undefined -fno-sanitize-recover=all",
        ("libasan.so", "libubsan.so", "libstdc++.so"),
        {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
        (*HOST_TESTS, *CHAIN_TESTS),
    ),
    "thread": Sanitizer(
        "-fsanitize=thread",
        ("libtsan.so", "libstdc++.so"),
        # NumPy's own threads, which nothing tells the sanitizer of, are not looked at.
        {"TSAN_OPTIONS": f"halt_on_error=1:abort_on_error=1:suppressions={SUPPRESSIONS}"},
        (*HOST_TESTS, *CHAIN_TESTS, *COUNTS_THREADS),
    ),
}


def build(name: str, source: Path = ROOT) -> Path:
    """The extension under a sanitizer; what was built before is brought up to date.

    Args:
        name: of `SANITIZERS`.
        source: the folder of CMakeLists.txt.
    """
    folder = BUILDS / name
    flags = f"{SANITIZERS[name].flags} -O1 -g -fno-omit-frame-pointer"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in (
        ["cmake", "-S", source, "-B", folder, "-G", "Ninja", "-DDDPM_RT_CUDA=OFF", "-DCMAKE_BUILD_TYPE=None",
         f"-DCMAKE_CXX_FLAGS={flags}", f"-DPython_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", folder],
    ):  # fmt: skip
        done = subprocess.run(
            list(map(str, command)), env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{name}: the build failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return next(folder.glob("_kernels*.so"))


def environment(name: str, module: Path) -> dict[str, str]:
    """What a process needs that loads the module."""
    sanitizer = SANITIZERS[name]
    found = [
        subprocess.run(["g++", f"-print-file-name={each}"], capture_output=True, text=True, check=True).stdout.strip()
        for each in sanitizer.libraries
    ]
    of_module = {"LD_PRELOAD": " ".join(found), "DDPM_RT_SANITIZED": str(module), "OMP_NUM_THREADS": "1"}
    return os.environ | sanitizer.options | of_module


def run(name: str, *arguments: str) -> int:
    """Run pytest under a sanitizer; its exit code."""
    # ThreadSanitizer knows few layouts of the address space, and random ones may not be among them.
    fixed = ["setarch", platform.machine(), "-R"] if name == "thread" else []
    command = [*fixed, sys.executable, "-m", "pytest", "-q", "-p", "tests.kernels.sanitized_module", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(name, build(name)), check=False).returncode


def main() -> int:
    """The command line; returns 1 where a sanitizer found something or a test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sanitizers", nargs="*", help=f"{', '.join(SANITIZERS)} (default: all)")
    failed = [name for name in parser.parse_args().sanitizers or SANITIZERS if run(name, *SANITIZERS[name].tests)]
    software = [sys.executable, "-m", "pytest", "-q", "tests/kernels/test_software_device.py", "-k", "sanitiz"]
    if subprocess.run(software, cwd=ROOT, check=False).returncode:
        failed.append("the device in software")
    print(f"sanitizers: {', '.join(failed)} failed" if failed else "sanitizers: nothing was found")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
