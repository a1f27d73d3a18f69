"""The device in software as a stage of `make gpu-check` has it: the stages run the real kernels."""

from __future__ import annotations

from benchmarks.gpu_check.context import StageContext
from tests.runtime.device.software_device import SoftwareMemory, software_device


def device_context(request, monkeypatch, tmp_path, memory_bytes=1 << 24):
    """Yields a stage's context on this device, and the findings as they were last published."""
    with software_device(request.node.nodeid, monkeypatch) as kernels:
        findings = {}
        context = StageContext(tmp_path, findings.update)
        context.kernels, context.memory = kernels, SoftwareMemory(kernels)
        context.memory.resize(memory_bytes)
        yield context, findings


def let_pytorch_in(context):
    """PyTorch of the CPU works on the device's memory, and at once: so does the device."""
    context.kernels.software_share_memory()
    context.kernels.software_set_eagerness(1.0)
