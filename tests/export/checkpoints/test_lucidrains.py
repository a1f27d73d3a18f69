"""Checkpoints of denoising-diffusion-pytorch: the network, the process and the chain equal the project's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.normal import draw_number, normal_batch
from export import ExportRequest, export_onnx
from export.checkpoints.checkpoint import ForeignCheckpoint
from export.checkpoints.registry import read_foreign
from runtime import Sampler
from tests.export.checkpoints.lucidrains_networks import make_diffusion, project, save_as_trainer
from tests.export.checkpoints.relative_errors import relative_errors

NETWORKS: dict[str, dict[str, Any]] = {
    "default attention": {},
    "four levels": {"unet_dim": 8, "unet_dim_mults": (1, 2, 4, 8)},
    "one level": {"unet_dim_mults": (2,)},
    "full attention everywhere": {"unet_full_attn": True},
    "full attention first": {"unet_full_attn": (True, False)},
    "flash attention": {"unet_full_attn": (True, True), "unet_flash_attn": True},
    "one head": {"unet_attn_heads": 1, "unet_attn_dim_head": 24},
    "heads by level": {"unet_attn_heads": (2, 3), "unet_attn_dim_head": (8, 16)},
    "gray": {"unet_channels": 1},
    "init_dim": {"unet_init_dim": 24},
    "dropout": {"unet_dropout": 0.5},
    "learned variance": {"learned": True, "objective": "pred_noise"},
    "short": {"timesteps": 50},
}


def read(diffusion: Any, path: Path, **flags: Any) -> ForeignCheckpoint:
    torch.save(diffusion.state_dict(), path)
    return read_foreign(path, {"image_size": 16} | flags, allow_pickle=True)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_network(kind: str, tmp_path: Path) -> None:
    diffusion = make_diffusion(**NETWORKS[kind])
    checkpoint = read(diffusion, tmp_path / "model.pt")
    process = checkpoint.process
    errors = relative_errors(
        lambda x, t: diffusion.model(x, t.long()), checkpoint.network, process.sample.chw, len(diffusion.betas)
    )
    assert max(errors) <= 1e-5
    assert (process.variance_type == "learned_range") == ("learned" in kind)
    np.testing.assert_allclose(process.schedule.betas, diffusion.betas.numpy(), rtol=1e-6)


def test_another_size_and_another_theta(tmp_path: Path) -> None:
    diffusion = make_diffusion(size=22, unet_sinusoidal_pos_emb_theta=500)
    right = read(diffusion, tmp_path / "model.pt", image_size=22, sinusoidal_pos_emb_theta=500)
    wrong = read(diffusion, tmp_path / "model.pt", image_size=22)
    for checkpoint, equal in ((right, True), (wrong, False)):
        errors = relative_errors(
            lambda x, t: diffusion.model(x, t.long()), checkpoint.network, checkpoint.process.sample.chw, 1000
        )
        assert (max(errors) <= 1e-5) == equal


def test_the_moving_average_of_a_trainers_file(tmp_path: Path) -> None:
    raw, average = make_diffusion(seed=1), make_diffusion(seed=2)
    # What the moving average does to the buffers is no schedule.
    for buffer in average.buffers():
        buffer *= 0.5
    path = save_as_trainer(tmp_path / "model-7.pt", raw, average)
    for flags, network, what in ((({}), average, "moving average (ema)"), ({"ema": False}, raw, "itself (model)")):
        checkpoint = read_foreign(path, {"image_size": 16} | flags, allow_pickle=True)
        errors = relative_errors(
            lambda x, t, network=network: network.model(x, t.long()), checkpoint.network, (3, 16, 16), 1000
        )
        assert max(errors) <= 1e-5
        assert what in checkpoint.notes[0]
        np.testing.assert_allclose(checkpoint.process.schedule.betas, raw.betas.numpy(), rtol=1e-6)
        assert checkpoint.process.prediction_type == "v_prediction"
        assert checkpoint.unet_config is None


def test_a_moving_average_that_is_not_begun(tmp_path: Path) -> None:
    path = save_as_trainer(tmp_path / "model-1.pt", make_diffusion(1), make_diffusion(2), initted=False)
    with pytest.raises(InputError, match=r"moving average is not begun yet.*--ema False"):
        read_foreign(path, {"image_size": 16}, allow_pickle=True)
    read_foreign(path, {"image_size": 16, "ema": False}, allow_pickle=True)


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("min_snr", [False, True])
def test_objective_and_schedule_are_read(objective: str, schedule: str, min_snr: bool, tmp_path: Path) -> None:
    diffusion = make_diffusion(
        objective=objective, beta_schedule=schedule, min_snr_loss_weight=min_snr, timesteps=200, unet_dim_mults=(1,)
    )
    process = read(diffusion, tmp_path / "model.pt").process
    assert (
        process.prediction_type == {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}[objective]
    )
    assert (process.variance_type, process.clip_sample) == ("fixed_small", 1.0)
    assert process.schedule.kind == {"linear": "linear", "cosine": "squaredcos_cap_v2", "sigmoid": "explicit"}[schedule]
    np.testing.assert_allclose(process.schedule.betas, diffusion.betas.numpy(), rtol=1e-6)
    if schedule == "linear":
        assert process.schedule == NoiseSchedule.make("linear", 200, 5e-4, 0.1)


@pytest.mark.parametrize(
    ("arguments", "prediction"),
    [
        ({"objective": "pred_noise", "unet_dim_mults": (1,)}, "epsilon"),
        ({"objective": "pred_v", "unet_dim_mults": (1,)}, "v_prediction"),
        ({"learned": True}, "epsilon"),  # two levels: linear attention and full
    ],
)
def test_the_chain(arguments: dict[str, Any], prediction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported, folded and sampled by our chain, against the project's own loop with our noise."""
    learned = arguments.get("learned", False)
    diffusion = make_diffusion(size=8, timesteps=20, unet_channels=1, **{"objective": "pred_noise", **arguments})
    torch.save(diffusion.state_dict(), tmp_path / "model.pt")
    request = ExportRequest(
        tmp_path / "unet.onnx", tmp_path / "model.pt", allow_pickle=True, checkpoint_flags={"image_size": 8}
    )
    export_onnx(request)
    sampler = Sampler(tmp_path / "unet.onnx", backend="onnxruntime")
    assert sampler.process.prediction_type == prediction
    ours = sampler.sample_float32(3, seed=4)
    draws = iter(range(19, 0, -1))

    def noise(n: int | None) -> torch.Tensor:
        return torch.from_numpy(normal_batch((1, 8, 8), [4] * 3, list(range(3)), [draw_number(n)] * 3))

    monkeypatch.setattr(torch, "randn_like", lambda x: noise(next(draws)))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noise(None))
    theirs = diffusion.p_sample_loop((3, 1, 8, 8)) * 2 - 1
    assert learned == (sampler.process.variance_type == "learned_range")
    assert np.linalg.norm(ours - theirs.numpy()) <= 1e-4 * np.linalg.norm(theirs.numpy())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"unet_self_condition": True}, r"takes 6 channels for images of 3: it is self-conditioned"),
    ],
)
def test_networks_that_our_chains_cannot_run(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        read(make_diffusion(**arguments), tmp_path / "model.pt")


def test_other_models_of_the_project(tmp_path: Path) -> None:
    package = project()
    unet = package.Unet(dim=16, dim_mults=(1, 2), random_fourier_features=True)
    continuous = package.ContinuousTimeGaussianDiffusion(unet, image_size=16)
    with pytest.raises(InputError, match=r"was trained in continuous time: its network is conditioned on log-SNR"):
        read(continuous, tmp_path / "model.pt")
    elucidated = package.ElucidatedDiffusion(unet, image_size=16)
    with pytest.raises(InputError, match=r"is an ElucidatedDiffusion, whose network is conditioned on σ"):
        read(elucidated, tmp_path / "model.pt")
    alone = package.Unet(dim=16, dim_mults=(1, 2))
    with pytest.raises(InputError, match=r"without betas and loss_weight.*model-N\.pt"):
        read(alone, tmp_path / "model.pt")
    weighted = package.Unet(dim=16, dim_mults=(1, 2), out_dim=8)
    with pytest.raises(InputError, match=r"has 3 input and 8 output channels"):
        read(package.WeightedObjectiveGaussianDiffusion(weighted, image_size=16), tmp_path / "model.pt")
    line = package.GaussianDiffusion1D(package.Unet1D(dim=16, dim_mults=(1, 2)), seq_length=16)
    with pytest.raises(InputError, match=r"over sequences or volumes"):
        read(line, tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"image_size": 15}, "image_size is 15, expected a multiple of 2"),
        ({"objective": "pred_noise"}, "loss_weight is of pred_v; correct --objective"),
        ({"objective": "pred_eps"}, "--objective is 'pred_eps', expected one of pred_noise, pred_x0, pred_v"),
        ({"auto_normalize": False}, "auto_normalize is False: its images lie in 0..1"),
        ({"sinusoidal_pos_emb_theta": 0}, "sinusoidal_pos_emb_theta is 0, expected a number above 1"),
        ({"num_heads": 4}, "--num_heads is no flag of denoising-diffusion-pytorch"),
    ],
)
def test_flags_that_do_not_fit(flags: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        read(make_diffusion(), tmp_path / "model.pt", **flags)


def test_the_size_is_asked_for(tmp_path: Path) -> None:
    torch.save(make_diffusion().state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="--image_size is not given"):
        read_foreign(tmp_path / "model.pt", {}, allow_pickle=True)


def spoil(name: str, change: Any) -> Any:
    def spoiled(state: dict[str, torch.Tensor]) -> None:
        state[name] = change(state[name])

    return spoiled


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("model.downs.0.0.mlp.1.bias"), r"lacks downs\.0\.0\.mlp\.1\.bias \[32\]"),
        (lambda state: state.update({"model.extra": torch.zeros(2, 3)}), r"also holds extra \[2, 3\]"),
        (
            spoil("model.final_conv.bias", lambda each: each * torch.nan),
            "final_conv.bias holds values that are not finite",
        ),
        (spoil("model.ups.0.2.mem_kv", lambda each: each[:, :1]), r"ups\.0\.2\.mem_kv has shape"),
        (
            spoil("model.mid_attn.mem_kv", lambda each: each[0]),
            r"mid_attn\.mem_kv has shape \[4, 4, 32\], expected 4 axes",
        ),
        (lambda state: state.pop("model.mid_block1.block1.norm.g"), "of a version before 2.0"),
        (spoil("betas", lambda each: each * torch.nan), r"beta\[0\] is nan"),
        (spoil("betas", lambda each: each * 0.9), r"alphas_cumprod\[\d+\] is .*the file is damaged"),
        (spoil("betas", lambda each: each.to_sparse()), r"betas is torch.float32 \[1000\] \(torch.sparse_coo, cpu\)"),
        (spoil("betas", lambda each: each[:1].expand(2**40)), "betas is .* of at most 1048575 timesteps"),
        (spoil("betas", lambda each: each[:7]), r"betas has shape \[7\] and alphas_cumprod \[1000\]"),
        (spoil("loss_weight", lambda each: each**2), r"loss_weight is of no objective that is known; give --objective"),
        (spoil("loss_weight", lambda each: each[:7]), r"loss_weight has shape \[7\]"),
    ],
)
def test_tensors_that_do_not_fit(change: Any, words: str, tmp_path: Path) -> None:
    state = make_diffusion().state_dict()
    change(state)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(InputError, match=words) as error:
        read_foreign(tmp_path / "model.pt", {"image_size": 16}, allow_pickle=True)
    assert str(tmp_path / "model.pt") in str(error.value)
    assert "\n" not in str(error.value)


def test_the_user_tells_the_objective_where_the_file_does_not(tmp_path: Path) -> None:
    diffusion = make_diffusion()
    diffusion.loss_weight.fill_(0.25)
    assert read(diffusion, tmp_path / "model.pt", objective="pred_x0").process.prediction_type == "sample"
