"""The reference engine: weights as diffusers reads them, buffers in place, and what is said of damaged files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DDPMPipeline

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError
from runtime.engines.torch_checkpoint import Network, TorchEngine, load_checkpoint
from runtime.process_flags import ProcessFlags
from tests.checkpoints import save_tiny_checkpoint

WEIGHTS = Path("unet/diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("saved") / "checkpoint", channels=2, size=(8, 4))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def random_inputs(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num, 2, 8, 4), dtype=np.float32), np.linspace(0, 999, num, dtype=np.float32).round()


def predict_by_diffusers(folder: Path, x: np.ndarray, t: np.ndarray) -> np.ndarray:
    pipeline = DDPMPipeline.from_pretrained(folder)
    with torch.no_grad():
        prediction: np.ndarray = pipeline.unet(torch.from_numpy(x), torch.from_numpy(t)).sample.numpy()
    return prediction


def test_engine_gives_the_bits_of_diffusers(saved: Path) -> None:
    x, t = random_inputs(3)
    prediction = np.full_like(x, np.nan)
    engine = TorchEngine(saved)
    call = engine.bind(x, t, prediction)
    call()
    assert np.array_equal(prediction, predict_by_diffusers(saved, x, t))
    assert prediction.std() == pytest.approx(1.0, abs=0.3)  # the builder's promise: errors would be seen


def test_bound_call_follows_its_buffers(saved: Path) -> None:
    x, t = random_inputs(2)
    prediction, again = np.empty_like(x), np.empty_like(x)
    engine = TorchEngine(saved)
    call, other = engine.bind(x, t, prediction), engine.bind(x.copy(), t.copy(), again)
    call()
    first = prediction.copy()
    x *= 0.5
    t[:] = 7
    call()
    other()
    assert not np.allclose(prediction, first)
    assert np.array_equal(prediction, predict_by_diffusers(saved, x, t))
    assert np.array_equal(again, first)


def test_checkpoint_is_ready_for_use(saved: Path) -> None:
    checkpoint = load_checkpoint(saved)
    assert not checkpoint.unet.training
    assert {(p.dtype, p.device.type, p.requires_grad) for p in checkpoint.unet.parameters()} == {
        (torch.float32, "cpu", False)
    }
    assert checkpoint.process.checkpoint_sha256 == checkpoint.sha256
    assert TorchEngine(saved).sha256 == checkpoint.network_sha256
    assert checkpoint.num_parameters == sum(
        tensor.numel() for tensor in safetensors.torch.load_file(saved / WEIGHTS).values()
    )


def test_unet_runs_in_float64(saved: Path) -> None:
    x, t = random_inputs(2)
    checkpoint = load_checkpoint(saved)
    expected = checkpoint.predict(x, t)
    exact = Network(checkpoint.unet.double())(torch.from_numpy(x).double(), torch.from_numpy(t).double())
    assert exact.dtype == torch.float64
    assert 0 < np.abs(exact.numpy() - expected).max() < 1e-5


def test_learned_time_embedding_takes_float_t(tmp_path: Path) -> None:
    unet = {"time_embedding_type": "learned", "num_train_timesteps": 20}
    folder = save_tiny_checkpoint(tmp_path, channels=2, size=(8, 4), unet=unet, num_train_timesteps=20)
    x, _ = random_inputs(2)
    t = np.array([0, 19], dtype=np.float32)
    assert np.array_equal(load_checkpoint(folder).predict(x, t), predict_by_diffusers(folder, x, t.astype(np.int64)))


def test_half_precision_weights_become_float32(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / WEIGHTS)
    safetensors.torch.save_file({name: tensor.half() for name, tensor in state.items()}, folder / WEIGHTS)
    loaded = load_checkpoint(folder).unet.state_dict()
    assert all(torch.equal(loaded[name], tensor.half().float()) for name, tensor in state.items())


def test_names_of_old_attention_layers_are_understood(folder: Path) -> None:
    x, t = random_inputs(2)
    expected = load_checkpoint(folder).predict(x, t)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = safetensors.torch.load_file(folder / WEIGHTS)
    renamed = {}
    for name, tensor in state.items():
        for new_name, old_name in old.items():
            name = name.replace(new_name, old_name)
        renamed[name] = tensor
    assert set(renamed) != set(state)
    safetensors.torch.save_file(renamed, folder / WEIGHTS)
    assert np.array_equal(load_checkpoint(folder).predict(x, t), expected)


def test_pickle_needs_permission(folder: Path) -> None:
    x, t = random_inputs(2)
    expected = load_checkpoint(folder).predict(x, t)
    pickled = folder / "unet" / "diffusion_pytorch_model.bin"
    torch.save(safetensors.torch.load_file(folder / WEIGHTS), pickled)
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"is a pickle.*`allow_pickle=True`"):
        load_checkpoint(folder)
    assert np.array_equal(load_checkpoint(folder, allow_pickle=True).predict(x, t), expected)
    assert TorchEngine(folder, allow_pickle=True).process.sample.chw == (2, 8, 4)
    pickled.write_bytes(pickled.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"found 5000 bytes, expected a pickle that holds tensors"):
        load_checkpoint(folder, allow_pickle=True)


class Intruder:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (Path.touch, (self.path,))


def test_pickle_never_runs_code(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"conv_in.weight": Intruder(tmp_path / "touched")}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match=r"tensors and nothing else"):
        load_checkpoint(folder, allow_pickle=True)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_truncated_weights_say_how_much_is_there(folder: Path, kept: int) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:kept])
    with pytest.raises(InputError) as error:
        load_checkpoint(folder)
    found = len(content[:kept])
    assert f"truncated: found {found} bytes, expected " in str(error.value)
    if found > 10_000:  # the header is whole: the size is known to the byte
        assert f"expected {len(content)};" in str(error.value)


def test_junk_is_not_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x04\0\0\0\0\0\0\0junk" + b"\0" * 100)
    with pytest.raises(InputError, match=r"not a safetensors file"):
        load_checkpoint(folder)
    (folder / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(InputError, match=r"Git LFS pointer.*git lfs pull"):
        load_checkpoint(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"found config\.json, expected the weights"):
        load_checkpoint(folder)


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / WEIGHTS)
    bias = state.pop("conv_out.bias")
    safetensors.torch.save_file(state, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"lacks 'conv_out\.bias', expected"):
        load_checkpoint(folder)
    safetensors.torch.save_file(state | {"conv_out.bias": bias, "extra": bias.clone()}, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"also holds 'extra', expected"):
        load_checkpoint(folder)
    safetensors.torch.save_file(state | {"conv_out.bias": bias[:1].clone()}, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"conv_out\.bias has shape \(1,\), expected \(2,\)"):
        load_checkpoint(folder)
    bias[1] = float("nan")
    safetensors.torch.save_file(state | {"conv_out.bias": bias}, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"conv_out\.bias holds values that are not finite"):
        load_checkpoint(folder)


def test_network_that_diffusers_cannot_build_is_bad_input(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"down_block_types": ["DownBlock2D", "NoSuchBlock"]}))
    with pytest.raises(InputError, match=r"diffusers cannot build this network \(NoSuchBlock does not exist"):
        load_checkpoint(folder)


def test_weights_that_train_json_does_not_describe_are_refused(folder: Path) -> None:
    process = load_checkpoint(folder).process.to_json()
    (folder / "train.json").write_text(json.dumps({"format": 1, "process": process}))
    load_checkpoint(folder)
    process["checkpoint_sha256"] = "0" * 64
    (folder / "train.json").write_text(json.dumps({"format": 1, "process": process}))
    with pytest.raises(InputError, match=r"SHA-256 is .*train\.json was written for 0000"):
        load_checkpoint(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_gpu_asked_for_where_none_is(saved: Path) -> None:
    with pytest.raises(DeviceUnavailableError, match=r"device cuda: .*; run on this machine with `device=cpu`"):
        TorchEngine(saved, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_gives_full_float32(saved: Path) -> None:
    x, t = random_inputs(3)
    prediction, reference = np.empty_like(x), np.empty_like(x)
    TorchEngine(saved, device="cuda").bind(x, t, prediction)()
    TorchEngine(saved).bind(x, t, reference)()
    assert np.linalg.norm(prediction - reference) <= 1e-5 * np.linalg.norm(reference)


@pytest.mark.parametrize("device", ["mps", "gpu", ""])
def test_unknown_device_is_bad_input(saved: Path, device: str) -> None:
    with pytest.raises(InputError, match=r"expected cpu, cuda or cuda:N"):
        TorchEngine(saved, device=device)


def test_buffers_of_the_wrong_shape_are_refused(saved: Path) -> None:
    engine = TorchEngine(saved)
    x, t = random_inputs(2)
    with pytest.raises(InputError, match=r"prediction is float32 \(2, 4, 8, 4\), expected float32 \(2, 2, 8, 4\)"):
        engine.bind(x, t, np.empty((2, 4, 8, 4), dtype=np.float32))
    with pytest.raises(InputError, match=r"t is float64"):
        engine.bind(x, t.astype(np.float64), np.empty_like(x))
    with pytest.raises(InputError, match=r"x is float32 .*C-contiguous"):
        engine.bind(np.asfortranarray(x), t, np.empty_like(x))


def test_user_may_choose_another_variance(saved: Path) -> None:
    engine = TorchEngine(saved, flags=ProcessFlags(variance_type="fixed_small", clip_sample="none"))
    assert (engine.process.variance_type, engine.process.clip_sample) == ("fixed_small", None)
    with pytest.raises(InputError, match=r"`num_train_timesteps`"):
        TorchEngine(saved, flags=ProcessFlags(num_train_timesteps=10))
