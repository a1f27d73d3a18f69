"""Every value of every field of a checkpoint's JSON files: as diffusers takes it, or refused in one line."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusion.errors import InputError
from runtime.engines.torch_checkpoint import Checkpoint, load_checkpoint
from tests.checkpoints import save_tiny_checkpoint

FILES = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
ODD: list[Any] = [
    None, True, False, 0, 1, 2, -1, 3.5, 1.0, 1e30, -0.5, 10**9, 10**400, 5 * 10**5, float("nan"), float("inf"), "",
    "1", "false", "none", "ü\n", [], [1], [0.5], ["0.1"], [1, 2], [None], [[]], [8, 8], [8, "8"], [True, True], {},
    {"a": 1}, [1] * 1000, [1e-4] * 1000, [0.01] * 999, "linear", "leading", "laplace", "epsilon",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("saved") / "checkpoint")


@pytest.fixture(scope="module")
def scratch(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(folder, tmp_path_factory.mktemp("scratch") / "checkpoint"))


def load_with(folder: Path, scratch: Path, file: str, key: str, value: Any) -> Checkpoint | None:
    """The checkpoint with that value; None if it is refused, as it should be: in one line that names the file."""
    fields = json.loads((folder / file).read_text())
    (scratch / file).write_text(json.dumps(fields | {key: value}))
    try:
        return load_checkpoint(scratch)
    except InputError as error:
        message = str(error)
        assert Path(file).name in message or "diffusion_pytorch_model" in message, (key, value, message)
        assert "\n" not in message
        assert len(message) < 600, message
    finally:
        (scratch / file).write_text(json.dumps(fields))
    return None


def check_as_diffusers(checkpoint: Checkpoint, fields: dict[str, dict[str, Any]], changed: object) -> None:
    """What was accepted predicts what diffusers' own network predicts, over diffusers' own betas."""
    process = checkpoint.process
    x = np.random.default_rng(0).standard_normal((2, *process.sample.chw), dtype=np.float32)
    t = np.array([0, process.schedule.num_train_timesteps - 1], dtype=np.float32)
    network = UNet2DModel.from_config(fields["unet/config.json"]).eval()
    network.load_state_dict(checkpoint.unet.state_dict())
    with torch.no_grad():
        theirs = network(torch.from_numpy(x), torch.from_numpy(t).long()).sample.numpy()
    np.testing.assert_array_equal(checkpoint.predict(x, t), theirs, err_msg=str(changed))
    index = fields["model_index.json"]
    scheduler = getattr(diffusers, index["scheduler"][1]).from_config(fields["scheduler/scheduler_config.json"])
    alpha_bar = process.schedule.alpha_bar
    np.testing.assert_allclose(alpha_bar, scheduler.alphas_cumprod.numpy(), rtol=2e-3, atol=1e-6, err_msg=str(changed))
    assert process.prediction_type == scheduler.config.prediction_type
    assert process.clip_sample == (scheduler.config.clip_sample_range if scheduler.config.clip_sample else None)
    assert process.timestep_spacing == scheduler.config.timestep_spacing
    assert not scheduler.config.thresholding
    assert scheduler.config.steps_offset == 0


def all_fields(folder: Path) -> list[tuple[str, str]]:
    files = {file: json.loads((folder / file).read_text()) for file in FILES}
    # What older and other versions of diffusers wrote, and what is not written unless it is given.
    more = {
        "unet/config.json": ["class_embed_type", "num_class_embeds", "quantization_config", "dtype",
                             "_use_default_values"],
        "scheduler/scheduler_config.json": ["set_alpha_to_one", "skip_prk_steps", "_use_default_values"],
        "model_index.json": [],
    }  # fmt: skip
    return [
        (file, key) for file, fields in files.items() for key in sorted({*fields, *more[file]} - {"_diffusers_version"})
    ]


def with_value(folder: Path, file: str, key: str, value: Any) -> dict[str, dict[str, Any]]:
    fields = {name: json.loads((folder / name).read_text()) for name in FILES}
    fields[file][key] = value
    return fields


@pytest.mark.parametrize("file", FILES)
def test_every_field_with_every_odd_value(folder: Path, scratch: Path, file: str) -> None:
    accepted = 0
    keys = [key for name, key in all_fields(folder) if name == file]
    for key in keys:
        for value in ODD:
            checkpoint = load_with(folder, scratch, file, key, copy.deepcopy(value))
            if checkpoint is not None:
                accepted += 1
                check_as_diffusers(checkpoint, with_value(folder, file, key, value), (key, value))
    assert accepted < 0.5 * len(keys) * len(ODD)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_field_with_any_json(folder: Path, scratch: Path, data: st.DataObject) -> None:
    file, key = data.draw(st.sampled_from(all_fields(folder)))
    value = data.draw(JSON)
    checkpoint = load_with(folder, scratch, file, key, value)
    if checkpoint is not None:
        check_as_diffusers(checkpoint, with_value(folder, file, key, value), (key, value))


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_field_may_be_missing(folder: Path, scratch: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(FILES))
    original = (folder / file).read_text()
    fields = json.loads(original)
    dropped = data.draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=3, unique=True))
    kept = {key: value for key, value in fields.items() if key not in dropped}
    (scratch / file).write_text(json.dumps(kept))
    try:
        checkpoint = load_checkpoint(scratch)
        check_as_diffusers(checkpoint, {name: json.loads((scratch / name).read_text()) for name in FILES}, dropped)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
    finally:
        (scratch / file).write_text(original)


NETWORKS: dict[str, dict[str, Any]] = {
    "centred": {"center_input_sample": True},
    "freq_shift": {"freq_shift": 1, "flip_sin_to_cos": False},
    "wide time": {"time_embedding_dim": 24},
    "learned time": {"time_embedding_type": "learned", "num_train_timesteps": 1200},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "no attention": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "scaled middle": {"mid_block_scale_factor": 1.5},
    "padding": {"downsample_padding": 0},
    "resnet sampling": {"downsample_type": "resnet", "upsample_type": "resnet"},
    "groups": {"norm_num_groups": 2, "attn_norm_num_groups": 4, "norm_eps": 1e-3},
    "one head": {"attention_head_dim": None},
    "gelu": {"act_fn": "gelu", "dropout": 0.3},
    "skip blocks": {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "block_out_channels": (32, 32),
    },
    "resnet blocks": {
        "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D"),
    },
    "k blocks": {  # with constants that no file holds
        "down_block_types": ("KDownBlock2D", "KDownBlock2D"),
        "up_block_types": ("KUpBlock2D", "KUpBlock2D"),
        "block_out_channels": (32, 64),
        "norm_num_groups": 32,
    },
    "oblong": {"sample_size": (8, 16)},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_predict_what_diffusers_predicts(tmp_path: Path, name: str) -> None:
    folder = save_tiny_checkpoint(tmp_path, channels=2, unet=NETWORKS[name])
    checkpoint = load_checkpoint(folder)
    pipeline = DDPMPipeline.from_pretrained(folder)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, *checkpoint.process.sample.chw), dtype=np.float32)
    t = np.array([0, 500, 999], dtype=np.float32)
    with torch.no_grad():
        theirs = pipeline.unet(torch.from_numpy(x), torch.from_numpy(t).long()).sample.numpy()
    np.testing.assert_array_equal(checkpoint.predict(x, t), theirs)
    assert np.abs(theirs).max() > 0.1


def test_fields_that_diffusers_passes_over_are_passed_over(folder: Path, scratch: Path) -> None:
    file = "scheduler/scheduler_config.json"
    fields = json.loads((folder / file).read_text())
    odd = fields | {"beta_end": 0.5, "clip_sample": "?", "_use_default_values": ["beta_end", "clip_sample"]}
    (scratch / file).write_text(json.dumps(odd))
    theirs = DDPMScheduler.from_pretrained(scratch / "scheduler")
    process = load_checkpoint(scratch).process
    (scratch / file).write_text(json.dumps(fields))
    assert theirs.config.beta_end == process.schedule.beta_end == 0.02
    assert process.clip_sample == 1.0
