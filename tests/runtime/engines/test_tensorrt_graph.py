"""One call as a CUDA graph, and the kernels that TensorRT-RTX compiles for it."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from runtime.engines.tensorrt_engine import TensorRtEngine
from tests.runtime.engines.host_memory import HostMemory
from tests.runtime.engines.tensorrt_fake import CALLS, bound


@pytest.fixture
def captures(monkeypatch):
    """Captures: what is enqueued meanwhile is recorded."""
    made, module = [], ModuleType("runtime.device.streams")

    def capture_graph(stream, enqueue):
        before = len(CALLS)
        enqueue(stream)
        made.append((stream, CALLS[before:]))
        return SimpleNamespace(handle=70 + len(made))

    module.capture_graph = capture_graph
    monkeypatch.setitem(sys.modules, "runtime.device.streams", module)
    return made


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_a_graph_is_captured_after_a_first_call(accepted, captures, module):
    engine = TensorRtEngine(accepted(module), memory=HostMemory())
    call, *_ = bound(engine)
    CALLS.clear()
    assert call.graph(6) == 71
    assert captures == [(6, ["execute_async_v3"])]
    calls = [name for name in CALLS if not name.startswith("IRuntimeCache")]
    asked = ["is_stream_capturable"] if module == "tensorrt_rtx" else []
    assert calls == ["execute_async_v3", *asked, "execute_async_v3"]
    assert engine.memory.synchronized[-1] == 6
    assert call.graph(6) == 71  # the same, owned by the call
    assert len(captures) == 1


def test_no_graph_where_tensorrt_rtx_says_so(accepted, captures):
    engine = TensorRtEngine(accepted(broken={"is_stream_capturable"}), memory=HostMemory())
    call, *_ = bound(engine)
    assert call.graph(6) is None
    assert captures == []
    call.enqueue(6)


def test_a_capture_that_fails_says_why(accepted, monkeypatch):
    module = ModuleType("runtime.device.streams")

    def capture_graph(stream, enqueue):
        raise RuntimeError("operation not permitted when stream is capturing")

    module.capture_graph = capture_graph
    monkeypatch.setitem(sys.modules, "runtime.device.streams", module)
    engine = TensorRtEngine(accepted(), memory=HostMemory())
    with pytest.raises(RuntimeError, match=r"unet.plan, a batch of 2: operation not permitted .* \(its log is empty\)"):
        bound(engine)[0].graph(6)


# TensorRT-RTX compiles its kernels when it first runs, and they are kept.


def test_compiled_kernels_are_kept_by_batch(accepted, plan_cache):
    for expected in (["serialize"], ["deserialize"]):
        engine = TensorRtEngine(accepted(), memory=HostMemory())
        CALLS.clear()
        call, *_ = bound(engine)
        for _ in range(3):
            call.enqueue(9)
        assert [name for name in CALLS if name.startswith("IRuntimeCache")] == [f"IRuntimeCache.{expected[0]}"]
    bound(engine, 3)[0].enqueue(9)
    assert CALLS[-1] == "IRuntimeCache.serialize"
    assert [file.read_bytes() for file in (plan_cache / "rtx-kernels").iterdir()] == [b"compiled"] * 2


def test_kernels_that_no_longer_fit_are_compiled_anew(accepted, plan_cache):
    engine = TensorRtEngine(accepted(), memory=HostMemory())
    bound(engine)[0].enqueue(9)
    (file,) = (plan_cache / "rtx-kernels").iterdir()
    file.write_bytes(b"of another driver")
    bound(TensorRtEngine(accepted(), memory=HostMemory()))[0].enqueue(9)
    assert file.read_bytes() == b"compiled"


def test_no_cache_where_none_can_be_written(tmp_path, accepted, plan_cache, capsys):
    (tmp_path / "cache").write_text("")
    bound(TensorRtEngine(accepted(broken={"set_runtime_cache"}), memory=HostMemory()))[0].enqueue(9)
    assert "TensorRT-RTX takes no cache of kernels" in capsys.readouterr().err
