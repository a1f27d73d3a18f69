"""What compilers make of the headers on the host: the noise's bits, and what is linked."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion.normal import draw_number
from tests.diffusion.test_normal import SAMPLE_INDEX, SEED, SHA256

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels"

# Writes 10^7 normals with nothing but the header.
PROGRAM = f"""
#include <cstdio>
#include "philox.h"
int main() {{
  const ddpm_rt::NoiseKey key = ddpm_rt::noise_key({SEED}ull, {SAMPLE_INDEX}ull, {draw_number(999)}u);
  static float z[10000000];
  for (unsigned i = 0; i < 2500000; ++i) {{
    ddpm_rt::normal_four(key, i, &z[4 * i], &z[4 * i + 1], &z[4 * i + 2], &z[4 * i + 3]);
  }}
  return std::fwrite(z, sizeof z, 1, stdout) == 1 ? 0 : 1;
}}
"""


def need(tool):
    found = shutil.which(tool, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{tool} is not installed")
    return found


def run(*command, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, check=False, **options)


def normals_of(compiler, folder, *flags):
    source, program = folder / "normals.cpp", folder / "normals"
    source.write_text(PROGRAM)
    built = run(need(compiler), "-O3", "-std=c++17", *flags, "-I", KERNELS, source, "-o", program)
    assert built.returncode == 0, built.stderr.decode()
    return run(program).stdout


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("flags", [["-O3"], ["-O3", "-march=native"], ["-O0"]], ids=" ".join)
def test_the_header_alone_gives_the_pinned_bits(compiler, flags, tmp_path):
    assert hashlib.sha256(normals_of(compiler, tmp_path, "-ffp-contract=off", *flags)).hexdigest() == SHA256


def test_default_contraction_would_change_the_bits(tmp_path):
    """Why every C++ target carries -ffp-contract=off: GCC fuses a*b + c wherever the CPU can."""
    compiler = need("g++")
    if " __FMA__ 1" not in run(compiler, "-march=native", "-dM", "-E", "-x", "c++", "/dev/null").stdout.decode():
        pytest.skip("this CPU has no fused multiply-add")
    contracted = np.frombuffer(normals_of(compiler, tmp_path, "-march=native"), np.uint32)
    exact = np.frombuffer(normals_of(compiler, tmp_path, "-march=native", "-ffp-contract=off"), np.uint32)
    assert 0.001 < (contracted != exact).mean() < 0.9


def test_fast_math_is_refused(tmp_path):
    source = tmp_path / "fast.cpp"
    source.write_text('#include "philox.h"\n')
    built = run(need("g++"), "-ffast-math", "-I", KERNELS, "-c", source, "-o", tmp_path / "fast.o")
    assert built.returncode != 0
    assert b"build without -ffast-math" in built.stderr


def test_every_cpp_target_is_built_without_contraction(tmp_path):
    """And the build is configured where there is no nvcc."""
    configured = run(
        need("cmake"), "-S", ROOT, "-B", tmp_path, "-G", "Ninja", "-DDDPM_RT_CUDA=OFF",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCMAKE_MAKE_PROGRAM={need('ninja')}",
    )  # fmt: skip
    assert configured.returncode == 0, configured.stderr.decode()
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    ours = {c["command"] for c in commands if Path(c["file"]).parent == KERNELS}
    assert len(ours) >= 5
    assert all("-ffp-contract=off" in command for command in ours)
    assert not any("-ffast-math" in command or "-Ofast" in command for command in ours)


def test_object_files_of_different_instruction_sets_share_no_function(tmp_path):
    """A linker could keep the copy that this CPU cannot run. Nor do the inner loops allocate."""
    nm = need("nm")
    built = tmp_path / "variant.o"
    flags = ["-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-DDDPM_RT_VARIANT=example"]
    compiled = run(need("g++"), *flags, "-c", KERNELS / "host_variant.cpp", "-o", built)
    assert compiled.returncode == 0, compiled.stderr.decode()
    defined = run(nm, "-C", "-g", "--defined-only", built).stdout.decode().split("\n")
    assert [line.split(" ", 2)[2] for line in defined if line] == ["ddpm_rt::instruction_set_example"]
    wanted = {line.split()[-1] for line in run(nm, "-u", built).stdout.decode().splitlines()}
    assert wanted <= {"memcpy", "memmove", "memset", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}
