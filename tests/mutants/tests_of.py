"""Which files are mutated, and which tests are asked about each: those that mirror it, then those of what uses it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

_GATES = (
    "runtime/engines/verification.py",
    "runtime/engines/batch_independence.py",
    "runtime/engines/agreement.py",
    "runtime/engines/gate_conditions.py",
    "runtime/engines/trajectories.py",
    "export/onnx_check.py",
)
_CHAIN = ("interface.py", "host.py", "host_pool.py", "pool.py", "plan.py")
FILES = (
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "diffusion").rglob("*.py")),
    *(f"runtime/chain/{name}" for name in _CHAIN),
    *sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "runtime/formats").glob("*.py") if path.name != "__init__.py"
    ),
    *_GATES,
)
"""The mathematics, the chain on the host, the formats and the gates."""

_MATHEMATICS = ("tests/diffusion", "tests/kernels/test_numpy_step.py", "tests/runtime/chain/test_plan.py")
_CHAIN_TESTS = ("test_host", "test_host_sharing", "test_conditions", "test_plan")
_OF_CHAIN = (*(f"tests/runtime/chain/{name}.py" for name in _CHAIN_TESTS), "tests/runtime/test_sampler.py")
_ENGINE_TESTS = ("test_tensorrt_refusals", "test_tensorrt_machine", "test_verification", "test_onnx_file")
_OF_FORMATS = (
    "tests/runtime/formats",
    *(f"tests/runtime/engines/{name}.py" for name in _ENGINE_TESTS),
    *(f"tests/runtime/runs/{name}.py" for name in ("test_safety", "test_shard_runs")),
)
_GATE_TESTS = ("test_verification", "test_batch_independence", "test_trajectories", "test_agreement")
_OF_GATES = (*(f"tests/runtime/engines/{name}.py" for name in _GATE_TESTS), "tests/export/test_onnx_check.py")


def tests_of(file: str) -> list[str]:
    """Arguments of pytest, those first that are likelier to notice."""
    stem = Path(file).stem
    mirrors = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").rglob(f"test_{stem}.py"))]
    if file.startswith("diffusion/"):
        wider = _MATHEMATICS
    elif file.startswith("runtime/chain/"):
        wider = _OF_CHAIN
    else:
        wider = _OF_FORMATS if file.startswith("runtime/formats/") else _OF_GATES
    return list(dict.fromkeys([*(each for each in mirrors if "/gpu/" not in each), *wider]))
