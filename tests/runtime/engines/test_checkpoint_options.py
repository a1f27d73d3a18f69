"""--precision and --compile: for a checkpoint folder on a GPU, and a clear error elsewhere."""

import pytest

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError
from runtime.engines.opening import open_engine
from tests.checkpoints import save_tiny_checkpoint


@pytest.mark.parametrize("name", ["unet.onnx", "unet.xml", "unet.plan"])
@pytest.mark.parametrize(
    ("options", "given"), [({"precision": "bf16"}, "--precision bf16"), ({"compiled": True}, "--compile")]
)
def test_files_chose_their_precision_when_they_were_exported(tmp_path, name, options, given):
    file = tmp_path / name
    file.write_bytes(b"")
    with pytest.raises(InputError, match=f"{given} is for a checkpoint folder, but the engine is .*{name}, whose"):
        open_engine(file, **options)


@pytest.mark.parametrize(
    ("options", "given"),
    [({"precision": "fp16"}, "--precision fp16"), ({"compiled": True, "precision": "fp32"}, "--compile")],
)
def test_the_cpu_runs_a_checkpoint_in_float32_alone(tmp_path, options, given):
    with pytest.raises(InputError, match=f"{given} is for a checkpoint folder on a GPU, but the device is the CPU"):
        open_engine(tmp_path, device="cpu", **options)


def test_on_a_gpu_the_engine_is_given_what_was_asked_for(tmp_path, monkeypatch):
    torch_device = pytest.importorskip("runtime.engines.torch_device")
    asked = []
    monkeypatch.setattr(torch_device, "open_checkpoint_on_gpu", lambda *arguments: asked.append(arguments))
    open_engine(tmp_path, device="cuda", precision="bf16", compiled=True, allow_pickle=True)
    open_engine(tmp_path, device="cuda")
    assert asked == [(tmp_path, "bf16", True, None, True), (tmp_path, "fp32", False, None, False)]


def test_explicit_float32_on_the_cpu_is_what_it_does_anyway(tmp_path):
    engine = open_engine(save_tiny_checkpoint(tmp_path), device="cpu", precision="fp32")
    assert engine.precision == "fp32"


def test_without_a_gpu_it_says_so(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(DeviceUnavailableError, match="device cuda: .*; run on this machine with `device=cpu`"):
        open_engine(save_tiny_checkpoint(tmp_path), device="cuda", precision="bf16")
