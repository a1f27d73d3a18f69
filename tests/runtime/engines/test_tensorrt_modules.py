"""The names that are touched, against the real modules and NVIDIA's record; and those modules without a GPU."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.device.driver import driver_facts
from runtime.engines import tensorrt_refusals
from runtime.engines.tensorrt_engine import TensorRtEngine
from runtime.engines.tensorrt_modules import import_tensorrt, missing_names, names_of, version_numbers
from runtime.engines.tensorrt_refusals import accept_plan
from tests.gaussian import GaussianNetwork
from tests.runtime.engines.host_memory import HostMemory
from tests.runtime.engines.plan_files import WITH_A10, engine_fields, save_plan
from tests.runtime.engines.tensorrt_fake import make_module

ROOT = Path(__file__).parents[3]
PROCESS = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 100), variance_type="fixed_large")
NETWORK = GaussianNetwork(PROCESS, 0.2, 0.5)
RECORD = json.loads(Path(__file__).with_name("tensorrt_api.json").read_text(encoding="utf-8"))
NAMES = ("tensorrt", "tensorrt_lean", "tensorrt_rtx")
# What the calls pass, by the signatures that the modules document.
ARGUMENTS = {
    "Runtime.deserialize_cuda_engine": ("serialized_engine",),
    "ICudaEngine.create_execution_context": ("strategy", "runtime_config"),
    "IExecutionContext.set_device_memory": ("memory", "size"),
    "IExecutionContext.set_input_shape": ("name", "shape"),
    "IExecutionContext.set_optimization_profile_async": ("profile_index", "stream_handle"),
    "IExecutionContext.set_tensor_address": ("name", "memory"),
    "IExecutionContext.execute_async_v3": ("stream_handle",),
}
no_gpu = pytest.mark.skipif(not driver_facts().missing, reason="says what happens where there is no GPU")


@pytest.fixture(scope="module", params=["tensorrt_lean", "tensorrt_rtx"])
def real(request):
    return pytest.importorskip(request.param)


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip("tensorrt_rtx")


def build(rtx, onnx_file):
    """A plan for several GPUs, built without one."""
    logger = rtx.Logger(rtx.Logger.ERROR)
    builder = rtx.Builder(logger)
    network = builder.create_network(0)
    parser = rtx.OnnxParser(network, logger)
    assert parser.parse(onnx_file.read_bytes())
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for name, sizes in (("x", (1, 4, 4)), ("t", ())):
        profile.set_shape(name, *((batch, *sizes) for batch in (1, 8, 64)))
    config.add_optimization_profile(profile)
    config.set_flag(rtx.BuilderFlag.REQUIRE_USER_ALLOCATION)
    config.num_compute_capabilities = 3
    for place, capability in enumerate(("SM80", "SM86", "SM89")):
        config.set_compute_capability(getattr(rtx.ComputeCapability, capability), place)
    return bytes(builder.build_serialized_network(network, config))


@pytest.fixture(scope="module")
def plan_bytes(rtx, tmp_path_factory):
    return build(rtx, NETWORK.save_onnx(tmp_path_factory.mktemp("onnx") / "unet.onnx"))


def test_the_real_modules_have_every_name(real):
    assert missing_names(real) == []
    assert import_tensorrt(real.__name__) is real
    for owner, names in names_of(real.__name__).items():
        for name in names:
            arguments = ARGUMENTS.get(f"{owner}.{name}", ())
            signature = getattr(getattr(real, owner), name).__doc__ if arguments else ""
            assert all(f"{argument}: " in signature for argument in arguments), (owner, name, signature)


def test_what_is_missing_is_found(real, monkeypatch):
    whole = real.IExecutionContext

    class Without:
        def __getattr__(self, name):
            if name == "set_device_memory":
                raise AttributeError(name)
            return getattr(whole, name)

    monkeypatch.setattr(real, "IExecutionContext", Without())
    assert missing_names(real) == ["IExecutionContext.set_device_memory"]
    with pytest.raises(DeviceUnavailableError, match=r"'tensorrt_\w+' [\d.]+ has no IExecutionContext.set_device_mem"):
        import_tensorrt(real.__name__)


@pytest.mark.parametrize("release", [release for release in RECORD["releases"] if release != "v10.0.0"])
def test_the_record_of_tensorrt_has_every_name(release):
    recorded = {owner: set(names.split()) for owner, names in RECORD["releases"][release].items()}
    for owner, names in names_of("tensorrt").items():
        assert set(names) <= recorded[owner], owner


def test_the_record_tells_releases_apart():
    assert {version_numbers(release[1:])[0] for release in RECORD["releases"]} == {10, 11}
    assert "set_device_memory" not in RECORD["releases"]["v10.0.0"]["IExecutionContext"].split()  # hence 10.1
    assert RECORD["origin"].startswith("github.com/NVIDIA/TensorRT")


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_for_them_has_these_names_and_no_others(name):
    module = make_module(name, "1.2.3", NETWORK)
    names = names_of(name)
    assert missing_names(module) == []
    for owner in [each for each in vars(module) if not each.startswith("__")]:
        if owner == "ILogger":
            continue
        found = {each for each in vars(getattr(module, owner)) if not each.startswith("_")}
        assert found - {"OTHER"} <= set(names[owner]) or owner == "EngineInvalidityDiagnostics", owner


@pytest.mark.parametrize(
    ("text", "numbers"), [("10.13.0.35", (10, 13, 0, 35)), ("11.0rc1", (11, 0)), ("1.7.dev", (1, 7)), ("", ())]
)
def test_versions_as_numbers(text, numbers):
    assert version_numbers(text) == numbers


def accept(folder, monkeypatch, flavor, module, content, **fields):
    engine = engine_fields(NETWORK, flavor, t_type="float32") | {"builder_version": module.__version__} | fields
    path = save_plan(folder / "unet.plan", NETWORK, engine, content, with_golden=False)
    monkeypatch.setattr(tensorrt_refusals, "driver_facts", lambda: WITH_A10)
    return accept_plan(path)


@no_gpu
def test_tensorrt_rtx_without_a_gpu_says_so_itself(tmp_path, monkeypatch, rtx, plan_bytes):
    """What a driver that vanished between our question and TensorRT's would look like."""
    accepted = accept(tmp_path, monkeypatch, "tensorrt-rtx", rtx, plan_bytes)
    assert accepted.module is rtx
    assert accepted.content.tobytes() == plan_bytes
    with pytest.raises(InputError, match=r"does not take this plan, .*CUDA GPU properties.*cudaError.*export\.to_trt"):
        TensorRtEngine(accepted, memory=HostMemory())


@no_gpu
def test_junk_with_a_sidecar_of_its_own_stops_at_tensorrt_rtx_own_check(tmp_path, monkeypatch, rtx):
    accepted = accept(tmp_path, monkeypatch, "tensorrt-rtx", rtx, b"junk" * 1000)
    with pytest.raises(InputError, match=r"does not take this plan, built by [\d.]+ \(MALFORMED_ENGINE: "):
        TensorRtEngine(accepted, memory=HostMemory())


@no_gpu
def test_the_lean_runtime_without_cuda_gets_nothing_to_deserialize(tmp_path, monkeypatch):
    """It would end the process: a segmentation fault."""
    lean = pytest.importorskip("tensorrt_lean")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    accepted = accept(tmp_path, monkeypatch, "tensorrt", lean, b"junk" * 1000, version_compatible=True)
    assert accepted.module is lean
    with pytest.raises(DeviceUnavailableError, match=r"TensorRT does not start \(createInferRuntime: .*CUDA"):
        TensorRtEngine(accepted, memory=HostMemory())


@no_gpu
def test_a_real_plan_on_a_machine_without_a_gpu(tmp_path, plan_bytes, rtx):
    """Exit 4, the engine that runs here, and no TensorRT module was imported on the way."""
    engine = engine_fields(NETWORK, "tensorrt-rtx", t_type="float32") | {"builder_version": rtx.__version__}
    save_plan(tmp_path / "unet.plan", NETWORK, engine, plan_bytes, with_golden=False)
    NETWORK.save_onnx(tmp_path / "unet.onnx")
    program = (
        "import sys, runtime.sample; code = runtime.sample.main(['--engine', 'unet.plan']);"
        "print([name for name in sys.modules if name.startswith('tensorrt')]); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert done.stdout == "[]\n"
    assert re.fullmatch(
        r"runtime.sample: unet.plan: no NVIDIA GPU found: .*; "
        r"give --engine unet.onnx, which runs here\n",
        done.stderr,
    )
    assert not (tmp_path / "samples").exists()


def test_the_modules_are_where_the_code_looks_for_them():
    """Nothing of ours is called like one of them, which would shadow it."""
    for name in NAMES:
        try:
            found = importlib.util.find_spec(name)
        except ValueError:
            continue
        assert found is None or ROOT / "runtime" not in Path(str(found.origin)).parents
