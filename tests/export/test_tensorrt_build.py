"""The real builder of TensorRT-RTX: what it is told, what it refuses, and what crashes it."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorrt_rtx
from onnx import numpy_helper

from commands.errors import DeviceUnavailableError
from commands.whole_files import work_folder
from diffusion.errors import InputError
from export import tensorrt_build
from export.tensorrt_build import BuildSettings, build_plan, timing_cache
from export.tensorrt_process import BuildProcess
from runtime.engines import tensorrt_modules
from runtime.engines.tensorrt_modules import collector_paused
from runtime.formats.batch_profile import BatchProfile
from runtime.formats.flavor import RTX, TENSORRT

TITLE = RTX.title


def settings(**changes: object) -> BuildSettings:
    fields: dict[str, object] = {
        "title": TITLE,
        "is_rtx": True,
        "chw": (4, 4, 4),
        "profiles": (BatchProfile(1, 2, 4),),
        "static": False,
        "capabilities": ("8.6", "8.9"),
    }
    return BuildSettings(**(fields | changes))  # type: ignore[arg-type]


def network(
    text: str = "p = Mul(x, row) prediction = Add(p, x)", opset: int = 18, batch: str = "N", more: str = ""
) -> bytes:
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : {opset}{more}]>
        network (float[{batch}, 4, 4, 4] x, int64[{batch}] t) => (float[{batch}, 4, 4, 4] prediction)
        {{ row = Gather(table, t) {text} }}"""
    )
    table = np.random.default_rng(0).standard_normal((50, 4, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    return model.SerializeToString()


def build(content: bytes, **changes: object) -> tensorrt_build.Built:
    return build_plan(tensorrt_rtx, content, settings(**changes), "unet.onnx")


def test_a_plan() -> None:
    built = build(network())
    assert len(built.plan) > 1000
    assert built.version == tensorrt_rtx.__version__
    # TF32 is on by default, and would not be named if it were off from the start.
    assert built.flags == ("REQUIRE_USER_ALLOCATION",)
    assert (built.optimization_level, built.timing_cache_sha256, built.layers) == (3, None, None)
    assert build(network(), optimization_level=0).optimization_level == 0


def test_more_gpus_make_a_larger_plan() -> None:
    assert len(build(network(), capabilities=("8.6",)).plan) < len(build(network(), capabilities=("8.6", "12.0")).plan)


def test_a_static_batch_and_several_profiles(capfd: pytest.CaptureFixture[str]) -> None:
    assert build(network(batch="3"), static=True, profiles=(BatchProfile(3, 3, 3),)).plan
    one = build(network()).plan
    assert len(build(network(), profiles=(BatchProfile(1, 1, 1), BatchProfile(2, 4, 8))).plan) > len(one)
    # What the builder says is kept for errors, or printed on request.
    assert capfd.readouterr() == ("", "")
    build(network(), verbose=True)
    assert f"{TITLE}: WARNING: " in capfd.readouterr().err


def test_no_collection_begins_inside_the_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls our log under a lock; a builder that is collected there waits for that lock for ever."""
    enabled: list[bool] = []
    monkeypatch.setattr(tensorrt_modules, "say", lambda line: enabled.append(gc.isenabled()))
    build(network(), verbose=True)
    assert enabled
    assert not any(enabled)
    assert gc.isenabled()


def test_an_error_keeps_no_builder_alive() -> None:
    with pytest.raises(InputError) as caught:
        build(b"junk")
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    assert frames
    assert caught.value.__context__ is None
    for frame in frames:
        assert not {"builder", "parser", "definition", "log"} & frame.f_locals.keys(), frame


@collector_paused()
def test_flags_of_tensorrt() -> None:
    """On a configuration of the real module: RTX has the flags, though it cannot build with them without a GPU."""
    log = tensorrt_modules.collecting_log(tensorrt_rtx)
    builder = tensorrt_rtx.Builder(log)
    flags = tensorrt_rtx.BuilderFlag
    for changes, expected in (
        ({"strip": True}, {"STRIP_PLAN"}),
        ({"refit": True}, {"REFIT"}),
        ({"version_compatible": True}, {"VERSION_COMPATIBLE"}),
    ):
        config = builder.create_builder_config()
        assert config.get_flag(flags.TF32)
        tensorrt_build._configure(tensorrt_rtx, config, settings(is_rtx=False, **changes), log)
        assert {name for name, flag in flags.__members__.items() if config.get_flag(flag)} == expected
    config = builder.create_builder_config()
    more = settings(workspace_bytes=2**20, optimization_level=1)
    tensorrt_build._configure(tensorrt_rtx, config, more, log)
    assert config.get_memory_pool_limit(tensorrt_rtx.MemoryPoolType.WORKSPACE) == 2**20
    assert config.builder_optimization_level == 1
    assert config.num_compute_capabilities == 2
    with pytest.raises(InputError, match="does not take ampere_plus here"):  # it sets nothing and raises nothing
        tensorrt_build._configure(tensorrt_rtx, config, settings(hardware_compatibility="ampere_plus"), log)


@pytest.mark.parametrize(
    ("content", "changes", "says"),
    [
        (
            network("p = my.Foo(row) prediction = Add(p, x)", more=', "my" : 1'),
            {},
            "cannot take the node number 1 of kind Foo .*Plugin not found",
        ),
        (b"junk" * 100, {}, "cannot parse the graph .*Failed to parse the ONNX model"),
        (network(), {"capabilities": ("9.0",)}, "--compute-capabilities: .* does not build for 9.0; leave it out"),
        (network(batch="3"), {}, "batch profile 1,2,4|cannot build it for batches up to 4"),
        (
            network("a = Reshape(x, s) b = Transpose<perm=[0, 2, 1]>(a) c = MatMul(b, a) d = Softmax(c)"
                    " e = ReduceMax<keepdims=1>(d, k) g = Reshape(e, s4) p = Mul(x, row) prediction = Add(p, g)"),
            {"profiles": (BatchProfile(1, 2, 10**9),)},
            "a batch of 1000000000 needs more memory .*OutOfMemory.*give a smaller --max-batch",
        ),
    ],
)  # fmt: skip
def test_refusals(content: bytes, changes: dict[str, object], says: str) -> None:
    if b"ReduceMax" in content:
        model = onnx.ModelProto.FromString(content)
        for name, values in (("s", [0, 4, 16]), ("k", [1, 2]), ("s4", [0, 1, 1, 1])):
            model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
        content = model.SerializeToString()
    with pytest.raises(InputError, match=says) as error:
        build(content, **changes)
    assert "\n" not in str(error.value)


def test_settings_pass_between_processes() -> None:
    given = settings(timing_cache=Path("/a"), layers=Path("b.json"), profiles=(BatchProfile(1, 2, 3),) * 2)
    assert BuildSettings.from_json(json.loads(json.dumps(given.to_json()))) == given
    assert BuildSettings.from_json(json.loads(json.dumps(settings().to_json()))) == settings()


def test_the_builder_in_a_process_of_its_own() -> None:
    with BuildProcess(RTX, network(), settings(), "unet.onnx") as process:
        built = process.wait()
    assert built == build(network())
    with (
        BuildProcess(RTX, b"junk" * 100, settings(), "unet.onnx", only_check=True) as process,
        pytest.raises(InputError, match="unet.onnx: TensorRT-RTX cannot parse the graph"),
    ):
        process.wait_for_check()


def test_a_builder_that_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with (
        BuildProcess(TENSORRT, network(), settings(title="TensorRT"), "unet.onnx") as process,
        pytest.raises(InputError, match="unet.onnx: TensorRT was ended by SIGSEGV while it built the network"),
    ):
        process.wait()


def test_a_builder_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: no such file')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with (
        BuildProcess(TENSORRT, network(), settings(), "unet.onnx") as process,
        pytest.raises(DeviceUnavailableError, match="TensorRT cannot be loaded .libnvinfer.so.10: no such file."),
    ):
        process.wait()


def test_a_build_that_is_left_is_ended() -> None:
    with BuildProcess(RTX, network(), settings(), "unet.onnx") as process:
        folder = process._folder
        assert folder.is_dir()
    assert process._process.poll() == -signal.SIGKILL
    assert not folder.exists()


PARENT = """
import time
from export.tensorrt_options import BuildSettings
from export.tensorrt_process import BuildProcess
from runtime.formats.batch_profile import BatchProfile
from runtime.formats.flavor import TENSORRT
settings = BuildSettings(title="TensorRT", is_rtx=False, chw=(4, 4, 4), profiles=(BatchProfile(1, 2, 4),), static=False,
                         capabilities=())
build = BuildProcess(TENSORRT, b"", settings, "unet.onnx")
print(build._process.pid, build._folder, flush=True)
time.sleep(600)
"""


def test_a_builder_ends_with_its_parent_and_its_folder_with_the_next_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In place of the builder, something that takes long.
    module = "import time\nfrom pathlib import Path\nPath(__file__).with_name('loaded').touch()\ntime.sleep(600)\n"
    (tmp_path / "tensorrt.py").write_text(module)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    builder, folder = parent.stdout.readline().split()
    deadline = time.monotonic() + 60
    while not (tmp_path / "loaded").exists():
        assert time.monotonic() < deadline, "the builder is not loaded"
        time.sleep(0.05)
    parent.kill()
    parent.communicate()
    while Path(f"/proc/{builder}").exists() and "Z" not in Path(f"/proc/{builder}/stat").read_text():
        assert time.monotonic() < deadline, "the builder goes on"
        time.sleep(0.05)
    assert Path(folder).is_dir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with work_folder() as mine, work_folder() as another:
        assert {path.name for path in tmp_path.glob("ddpm-rt-work.*")} == {mine.name, another.name}
    assert not list(tmp_path.glob("ddpm-rt-work.*"))


class Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class Config:
    """`IBuilderConfig` as far as caches go: it refuses what was measured elsewhere."""

    def __init__(self) -> None:
        self.used: Cache | None = None

    def create_timing_cache(self, content: bytes) -> Cache | None:
        return None if content == b"damaged" else Cache(content)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.content == b"of another GPU":
            return False
        self.used = cache
        return True

    def get_timing_cache(self) -> Cache | None:
        return self.used


@pytest.mark.parametrize("before", [None, b"old;", b"damaged", b"of another GPU"])
def test_read_used_and_written_back(before: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "timing" / "tensorrt.cache"
    if before is not None:
        path.parent.mkdir()
        path.write_bytes(before)
    config = Config()
    with timing_cache(config, path) as cache:
        assert config.used is not None
        config.used.content += b"new;"
        with path.with_name("tensorrt.cache.lock").open("w") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        cache.save()
    expected = b"old;new;" if before == b"old;" else b"new;"
    assert path.read_bytes() == expected
    assert cache.sha256 == hashlib.sha256(expected).hexdigest()


def test_a_build_that_failed_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tensorrt.cache"
    path.write_bytes(b"old;")
    with pytest.raises(KeyError), timing_cache(Config(), path):
        raise KeyError
    assert path.read_bytes() == b"old;"


def test_no_cache() -> None:
    config = Config()
    with timing_cache(config, None) as cache:
        cache.save()
    assert config.used is None
    assert cache.sha256 is None


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="give --timing-cache none"), timing_cache(Config(), tmp_path / "file" / "c"):
        pass
