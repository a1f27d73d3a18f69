"""compute-sanitizer over every kernel and chains: no access out of bounds, nothing read that was never written."""

import functools

import pytest

from tests.gpu import sanitized_work, sanitizer
from tests.gpu.sanitizer import DONE, ERROR_EXIT_CODE, Verdict, read_verdict, sanitize
from tests.gpu.software_machine import SoftwareMachine
from tests.runtime.device.software_device import SoftwareKernels


@functools.cache
def verdict_of(check, part):
    return sanitize(check, part)


@pytest.mark.gpu
@pytest.mark.budget(40)
@pytest.mark.parametrize(
    ("check", "part"),
    [
        ("memcheck", "launches"),
        ("memcheck", "while"),
        ("initcheck", "launches"),  # not racecheck: the kernels have no shared memory
        ("memcheck", "step"),
        ("initcheck", "while"),
    ],
)
def test_nothing_is_found(check, part):
    if part == "while" and verdict_of("memcheck", "planted").outcome != "errors":
        pytest.skip("memcheck does not see a write out of bounds in a WHILE node: clean would mean nothing")
    verdict = verdict_of(check, part)
    if verdict.outcome == "refused":
        pytest.skip(f"{check}, {part}: refused, {verdict.reason}")
    assert verdict == Verdict("clean", "")


@pytest.mark.parametrize("part", ["launches", "step", "while", "none"])
@pytest.mark.parametrize("machine", ["software"], indirect=True)
def test_what_runs_under_the_sanitizer_is_right(machine, part, capsys):
    sanitized_work.run(machine, part)
    assert capsys.readouterr().out.strip() == DONE


def test_the_fault_that_is_planted_is_a_write_out_of_bounds_in_a_loop(tmp_path):
    kernels = SoftwareKernels(3)
    with pytest.raises(RuntimeError):
        sanitized_work.run(SoftwareMachine(tmp_path, kernels), "planted")
    assert "a write to" in kernels.software_fault()
    assert "past the end of an allocation of 32" in kernels.software_fault()
    assert kernels.state("cudaGraphLaunch") == 1


CLEAN = f"========= COMPUTE-SANITIZER\n{DONE}\n========= ERROR SUMMARY: 0 errors\n"
OUT_OF_BOUNDS = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at void step_kernel<(int)0, (bool)0, float>(StepJob)+0x90
========= ERROR SUMMARY: 1 error
"""
NOT_WRITTEN = f"""========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
{DONE}
========= ERROR SUMMARY: 1 error
"""
FALSE_ALARM = f"""========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes, potentially made before memory is allocated
{DONE}
========= ERROR SUMMARY: 1 error
"""
UNSUPPORTED = """========= COMPUTE-SANITIZER
========= Error: Device not supported. Please refer to the "Supported Devices" section of the sanitizer documentation
=========
Traceback (most recent call last):
RuntimeError: cudaSetDevice failed: unknown error (cudaErrorUnknown)
========= Target application returned an error
========= ERROR SUMMARY: 0 errors
"""


@pytest.mark.parametrize(
    ("code", "output", "outcome", "reason"),
    [
        (0, CLEAN, "clean", ""),
        (ERROR_EXIT_CODE, OUT_OF_BOUNDS, "errors", "Invalid __global__ write"),
        (ERROR_EXIT_CODE, NOT_WRITTEN, "errors", "Uninitialized __global__ memory read"),
        (ERROR_EXIT_CODE, FALSE_ALARM, "clean", ""),
        (ERROR_EXIT_CODE, FALSE_ALARM + OUT_OF_BOUNDS, "errors", "Invalid __global__ write"),
        (ERROR_EXIT_CODE, FALSE_ALARM.replace("1 error", "2 errors"), "errors", "2 errors"),
        (1, UNSUPPORTED, "refused", "Device not supported"),
        (1, CLEAN.replace(DONE, "ImportError: no module"), "refused", "ImportError"),
        (0, CLEAN.replace(DONE, ""), "refused", "SUMMARY"),  # its work did not come to its end
        (127, "", "refused", "it printed nothing (exit code 127)"),
    ],
)
def test_verdicts(code, output, outcome, reason):
    verdict = read_verdict(code, output)
    assert verdict.outcome == outcome
    assert reason in verdict.reason


def test_the_tool_is_started_over_the_work(tmp_path, monkeypatch):
    script = f"echo \"$@\" >> {tmp_path}/calls\nprintf '%s\\n' '{DONE}' '========= ERROR SUMMARY: 0 errors'"
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o700)
    monkeypatch.setattr(sanitizer, "find_cuda_tool", lambda name: str(tool))
    assert sanitize("initcheck", "while").outcome == "clean"
    call = (tmp_path / "calls").read_text().strip()
    assert call.startswith(f"--tool initcheck --error-exitcode {ERROR_EXIT_CODE}")
    assert call.endswith("-m tests.gpu.sanitized_work while")
    tool.write_text("#!/bin/sh\nexec sleep 30\n")
    monkeypatch.setattr(sanitizer, "LIMIT_SECONDS", 0.3)
    assert sanitize("memcheck", "step") == Verdict("refused", "not done after 0 s")
    monkeypatch.setattr(sanitizer, "find_cuda_tool", lambda name: None)
    assert "compute-sanitizer is not on the PATH" in sanitize("memcheck", "step").reason
