"""What nvcc makes of the CUDA kernels: registers, instructions, accesses. Nothing here runs on a GPU."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from commands.whole_files import write_whole_text
from tests.kernels.test_compilers import KERNELS, need, run

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
# 18 kinds of step: 0, 1 or 2 histories, a learned variance or not, three types.
NUM_STEPS, NUM_KERNELS = 18, 23


def report_of(tmp_path, architectures):
    """By (architecture, kernel): registers, and bytes of stack, spilled stores and spilled loads."""
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    compiled = run(
        need("nvcc"), "-std=c++17", "-O3", "-fmad=false", "-fatbin", "--threads=2", *targets, "-Xptxas", "-v",
        KERNELS / "step.cu", "-o", tmp_path / "step.fatbin",
    )  # fmt: skip
    text = compiled.stderr.decode()
    assert compiled.returncode == 0, text
    assert "warning" not in text
    found = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        text,
        re.DOTALL,
    )
    return {(int(sm), name): (int(registers), *map(int, bytes_)) for name, sm, *bytes_, registers in found}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of every architecture; what nvcc said of the very same files is kept in build/nvcc, since it takes it 15 s."""
    known = run(need("nvcc"), "--list-gpu-code").stdout.decode().split()
    architectures = [number for number in ARCHITECTURES if f"sm_{number}" in known]
    assert 90 in architectures
    sources = [path.read_bytes() for path in sorted(KERNELS.iterdir()) if path.suffix in (".cu", ".h")]
    made_of = [
        run(need("nvcc"), "--version").stdout,
        repr(architectures).encode(),
        *sources,
        Path(__file__).read_bytes(),
    ]
    kept = KERNELS.parent / "build" / "nvcc" / f"{hashlib.sha256(b''.join(made_of)).hexdigest()}.json"
    if not kept.exists():
        rows = [[*key, numbers] for key, numbers in report_of(tmp_path_factory.mktemp("report"), architectures).items()]
        write_whole_text(kept, json.dumps(rows))
    found = {(sm, name): tuple(numbers) for sm, name, numbers in json.loads(kept.read_text())}
    assert len(found) == NUM_KERNELS * len(architectures)
    return found


def test_no_kernel_spills_on_any_architecture(report):
    spilled = {key: numbers for key, numbers in report.items() if any(numbers[1:])}
    assert not spilled


def test_the_usual_steps_leave_room_for_three_quarters_of_the_threads(report):
    """Without histories in 16 bits: 48 registers let 1280 of a multiprocessor's threads wait for memory at once."""
    usual = [numbers[0] for (_, name), numbers in report.items() if re.search(r"ILi0ELb[01]ENS_\d+B?Float16", name)]
    assert len(usual) == 4 * len({architecture for architecture, _ in report})
    assert max(usual) <= 48
    assert max(numbers[0] for numbers in report.values()) <= 80  # 768 threads, whatever the step


@pytest.fixture(scope="module")
def ptx(tmp_path_factory):
    """PTX of the CUDA kernels, with the contraction that nvcc does by default: the source must forbid it itself."""
    target = tmp_path_factory.mktemp("ptx") / "step.ptx"
    compiled = run(need("nvcc"), "-std=c++17", "-ptx", "-arch=compute_80", KERNELS / "step.cu", "-o", target)
    assert compiled.returncode == 0, compiled.stderr.decode()
    return target.read_text()


def kernels_of(ptx):
    """By mangled name: the body."""
    bodies = re.split(r"\.entry (\w+)", ptx)
    return dict(zip(bodies[1::2], bodies[2::2], strict=True))


def test_no_operation_of_the_cuda_kernels_is_fused(ptx):
    assert "normal_kernel" in ptx
    assert "step_kernel" in ptx
    assert not re.search(r"\bfma\.", ptx)
    # Without a rounding mode ptxas may still fuse.
    assert not re.search(r"\b(add|sub|mul)(\.ftz)?\.f32", ptx)
    assert len(re.findall(r"\b(?:add|mul)\.rn\.f32", ptx)) > 1000
    # Square roots are rounded once; nothing is approximated or flushed.
    assert "sqrt.rn.f32" in ptx
    assert not re.search(r"\.approx|\.ftz|\b(sin|cos|lg2|ex2)\.", ptx)


def test_memory_is_read_and_written_16_bytes_at_a_time(ptx):
    """x, prediction and maybe its second half, histories: float32 in two accesses, 16-bit types in one."""
    steps = {name: body for name, body in kernels_of(ptx).items() if "step_kernel" in name}
    assert len(steps) == NUM_STEPS
    for name, body in steps.items():
        histories = int(re.search(r"ILi(\d)E", name)[1])
        accesses = 1 if "Float16" in name else 2
        loads = re.findall(r"ld\.global\.v4\.\w?32", body)
        assert len(loads) == 2 + 2 * accesses + 2 * histories, name
        stores = re.findall(r"st\.global\.v4\.\w?32", body)
        assert len(stores) >= 2 + 2 * histories + 2 + accesses, name
        # All of them are on their way before the noise is made.
        assert body.rindex(loads[-1]) < body.index("sqrt.rn.f32"), name


def test_every_step_can_count_rows_for_a_loop_on_the_device(ptx):
    calls = [name for name, body in kernels_of(ptx).items() if "cudaGraphSetConditional" in body]
    assert len(calls) == NUM_STEPS
    assert all("step_kernel" in name for name in calls)


def test_the_graph_code_compiles_against_the_toolkits_own_headers(tmp_path):
    """The host's compiler alone, with every warning: a signature that CUDA changed would not pass."""
    include = KERNELS.parent
    nvcc = need("nvcc")
    listed = run(nvcc, "-dryrun", "-c", KERNELS / "step.cu", "-o", tmp_path / "unused.o").stderr.decode()
    toolkit = re.search(r'INCLUDES="-I(\S+?)"', listed.replace('" ', '"')) or re.search(r"-I(\S*include)\b", listed)
    assert toolkit, listed
    compiled = run(
        need("g++"), "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-isystem", toolkit[1],
        "-I", include, KERNELS / "cuda_graph.cpp",
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stderr.decode()


def test_the_module_imports_without_a_cuda_driver():
    """The CUDA runtime is linked statically: no shared CUDA library is needed."""
    from runtime import _kernels

    needed = run(need("readelf"), "-d", _kernels.__file__).stdout.decode()
    assert "NEEDED" in needed
    assert not re.search(r"NEEDED.*(cuda|nv)", needed)
