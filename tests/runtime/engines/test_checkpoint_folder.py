"""Which folders are taken for a checkpoint, and what is said of the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion.conditions import Condition
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.engines.checkpoint_folder import read_checkpoint_folder
from runtime.formats.train_record import TrainRecord
from runtime.process_flags import ProcessFlags
from tests.checkpoints import save_tiny_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("saved") / "checkpoint")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_train_json(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda process: None) -> None:
    process = read_checkpoint_folder(folder).process.to_json()
    change(process)
    (folder / "train.json").write_text(json.dumps({"format": 1, "process": process}))


def test_process_is_what_diffusers_files_say(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(
        tmp_path,
        channels=3,
        size=(16, 8),
        variance_type="learned_range",
        prediction_type="v_prediction",
        num_train_timesteps=50,
        beta_schedule="scaled_linear",
        beta_start=0.01,
        beta_end=0.3,
        clip_sample_range=2.5,
    )
    process = read_checkpoint_folder(folder).process
    assert process.sample == SampleShape(3, 16, 8, levels=256)
    assert process.schedule == NoiseSchedule.make("scaled_linear", 50, 0.01, 0.3)
    assert (process.prediction_type, process.variance_type) == ("v_prediction", "learned_range")
    assert process.clip_sample == 2.5


def test_ddim_scheduler_describes_the_same_training(folder: Path) -> None:
    expected = read_checkpoint_folder(folder).process
    path = folder / "scheduler" / "scheduler_config.json"
    fields = json.loads(path.read_text()) | {"_class_name": "DDIMScheduler", "set_alpha_to_one": True}
    del fields["variance_type"]
    path.write_text(json.dumps(fields))
    found = read_checkpoint_folder(folder).process
    assert found.schedule == expected.schedule
    assert found.variance_type == "fixed_small"


def test_train_json_adds_levels_and_score(folder: Path) -> None:
    def change(process: dict[str, Any]) -> None:
        process["sample"]["levels"] = 17
        process["prediction_type"] = "score"

    write_train_json(folder, change)
    process = read_checkpoint_folder(folder).process
    assert process.sample.levels == 17
    assert process.prediction_type == "score"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda p: p["sample"].update(height=16), "sample shape is (1, 16, 8)"),
        (lambda p: p.update(prediction_type="sample"), "prediction_type is 'sample'"),
        (lambda p: p.update(variance_type="fixed_small"), "variance_type is 'fixed_small'"),
        (lambda p: p.update(clip_sample=None), "clip_sample is None"),
        (lambda p: p["schedule"].update(num_train_timesteps=999), "num_train_timesteps is 999"),
        (lambda p: p["schedule"].update(beta_end=0.021), "beta[999] is 0.021"),
    ],
    ids=["shape", "prediction", "variance", "clip", "timesteps", "betas"],
)
def test_train_json_that_contradicts_diffusers_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any], found: str
) -> None:
    write_train_json(folder, change)
    with pytest.raises(InputError) as error:
        read_checkpoint_folder(folder)
    assert found in str(error.value)
    assert "correct the one that is wrong" in str(error.value)
    assert "remove" not in str(error.value)  # it alone says how many gray levels the data has


def test_explicit_betas_of_train_json_agree_with_trained_betas(tmp_path: Path) -> None:
    betas = np.geomspace(1e-4, 0.5, 20)
    folder = save_tiny_checkpoint(tmp_path, num_train_timesteps=20, trained_betas=betas.tolist())
    write_train_json(folder)
    assert np.array_equal(read_checkpoint_folder(folder).process.schedule.betas, betas)


def test_train_json_of_another_format_is_refused(folder: Path) -> None:
    (folder / "train.json").write_text(json.dumps({"format": 3}))
    with pytest.raises(InputError, match=r"train\.json: format is 3, this version reads 2"):
        read_checkpoint_folder(folder)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, ["'StableDiffusionPipeline'", "DDPMPipeline"]),
        ("model_index.json", {"unet": ["diffusers", "UNet2DConditionModel"]}, ["UNet2DConditionModel", "UNet2DModel"]),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, ["'UNet2DConditionModel'", "UNet2DModel"]),
        ("unet/config.json", {"num_class_embeds": 0}, ["num_class_embeds is 0", "from 1 to"]),
        ("unet/config.json", {"class_embed_type": "timestep"}, ["class_embed_type is 'timestep'", "null"]),
        ("unet/config.json", {"time_embedding_type": "fourier"}, ["'fourier'", "'positional'"]),
        ("unet/config.json", {"sample_size": 9}, ["9×9", "multiples of 2"]),
        ("unet/config.json", {"out_channels": 2}, ["out_channels is 2", "expected 1"]),
        (
            "unet/config.json",
            {"time_embedding_type": "learned", "num_train_timesteps": 100},
            ["num_train_timesteps is 100", "1000"],
        ),
        ("scheduler/scheduler_config.json", {"_class_name": "MyScheduler"}, ["'MyScheduler'", "DDIMScheduler"]),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, ["'EDMEulerScheduler'", "σ"]),
        ("model_index.json", {"scheduler": ["diffusers", "EDMEulerScheduler"]}, ["'EDMEulerScheduler'", "σ"]),
        ("model_index.json", {"scheduler": ["mine", "DDPMScheduler"]}, ["['mine', 'DDPMScheduler']"]),
        ("model_index.json", {"unet": ["mine", "UNet2DModel"]}, ["['mine', 'UNet2DModel']"]),
        ("model_index.json", {"vqvae": ["diffusers", "VQModel"]}, ["vqvae", "latent diffusion", "not pixels"]),
        (
            "model_index.json",
            {"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]},
            ["'LDMPipeline'", "latent diffusion"],
        ),
        (
            "model_index.json",
            {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]},
            ["'StableDiffusionPipeline'", "text-to-image"],
        ),
        ("scheduler/scheduler_config.json", {"thresholding": True}, ["thresholding is true", "false"]),
        ("scheduler/scheduler_config.json", {"steps_offset": 1}, ["steps_offset is 1", "expected 0"]),
        ("scheduler/scheduler_config.json", {"variance_type": "learned"}, ["variance_type is 'learned'"]),
    ],
)
def test_what_cannot_be_reproduced_is_named(folder: Path, file: str, changes: dict[str, Any], words: list[str]) -> None:
    edit(folder / file, **changes)
    with pytest.raises(InputError) as error:
        read_checkpoint_folder(folder)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in [Path(file).name, *words]), message


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_missing_and_broken_files_are_named(folder: Path, file: str) -> None:
    (folder / file).write_text("{")
    with pytest.raises(InputError, match=r"not JSON"):
        read_checkpoint_folder(folder)
    (folder / file).write_text("[]")
    with pytest.raises(InputError, match=r"holds a list, expected a JSON object"):
        read_checkpoint_folder(folder)
    (folder / file).unlink()
    with pytest.raises(InputError) as error:
        read_checkpoint_folder(folder)
    assert str(folder / file) in str(error.value)


def test_missing_folder_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such checkpoint folder.*python -m train\.run"):
        read_checkpoint_folder(tmp_path / "runs" / "digits")


def test_unfinished_training_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(InputError, match=r"not finished.*--resume"):
        read_checkpoint_folder(tmp_path)


def test_parts_of_none_are_no_parts(folder: Path) -> None:
    expected = read_checkpoint_folder(folder).process
    edit(folder / "model_index.json", vqvae=[None, None], force_upcast=True)
    assert read_checkpoint_folder(folder).process == expected


def test_the_scheduler_of_the_index_decides_as_in_diffusers(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "PNDMScheduler"}))
    for name, clip, spacing in (("DDPMScheduler", 1.0, "leading"), ("DEISMultistepScheduler", None, "linspace")):
        edit(folder / "model_index.json", scheduler=["diffusers", name])
        process = read_checkpoint_folder(folder).process
        assert (process.clip_sample, process.timestep_spacing) == (clip, spacing)


@pytest.fixture
def network(folder: Path) -> Path:
    """The folder of a network alone."""
    return folder / "unet"


FLAGS = ProcessFlags(
    beta_schedule="linear",
    beta_end=0.05,
    num_train_timesteps=60,
    prediction_type="epsilon",
    variance_type="fixed_large",
    clip_sample="none",
)


def test_flags_tell_the_process_of_a_network_alone(network: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"holds the network alone; name its pipeline's folder {network.parent}"):
        read_checkpoint_folder(network)
    moved = network.rename(tmp_path / "alone")
    with pytest.raises(InputError, match=r"has no scheduler_config\.json .* and `beta_schedule`, .* is not given"):
        read_checkpoint_folder(moved)
    found = read_checkpoint_folder(moved, FLAGS)
    assert found.process == Process(
        SampleShape(1, 8, 8), NoiseSchedule.make("linear", 60, 1e-4, 0.05), "epsilon", "fixed_large", None
    )
    assert found.unet_folder == moved
    assert read_checkpoint_folder(moved, replace(FLAGS, channels=1, height=8)).process == found.process


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": 16}, r"`height` is 16, but the network was made for 8"),
        ({"variance_type": "learned_range"}, r"out_channels is 1, expected 2"),
        ({"output_name": "eps"}, r"`output_name` is for an ONNX file"),
        ({"clip_sample": None}, r"`clip_sample` is not given"),
    ],
)
def test_flags_that_are_not_those_of_the_network(network: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_checkpoint_folder(network, replace(FLAGS, **changes))


def test_a_size_that_the_network_leaves_open_is_given(network: Path) -> None:
    edit(network / "config.json", sample_size=None)
    with pytest.raises(InputError, match="sample_size is None"):
        read_checkpoint_folder(network, FLAGS)
    config = json.loads((network / "config.json").read_text())
    del config["sample_size"]
    (network / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"sample_size is missing, expected"):
        read_checkpoint_folder(network, replace(FLAGS, height=8))
    assert read_checkpoint_folder(network, replace(FLAGS, height=8, width=12)).process.sample.chw == (1, 8, 12)


def test_a_scheduler_beside_the_network_tells_its_process(folder: Path, tmp_path: Path) -> None:
    expected = read_checkpoint_folder(folder).process
    (folder / "scheduler" / "scheduler_config.json").rename(folder / "unet" / "scheduler_config.json")
    assert read_checkpoint_folder(folder / "unet", FLAGS).process == expected
    scheduler = folder / "unet" / "scheduler_config.json"
    config = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps({name: value for name, value in config.items() if name != "_class_name"}))
    with pytest.raises(InputError, match="_class_name is missing, expected that of a scheduler"):
        read_checkpoint_folder(folder / "unet")
    scheduler.write_text(json.dumps(config))
    edit(folder / "unet" / "config.json", _class_name="UNet1DModel")
    with pytest.raises(InputError, match="_class_name is 'UNet1DModel', expected UNet2DModel"):
        read_checkpoint_folder(folder / "unet")


def test_a_class_label_is_a_condition_and_train_json_says_which_is_the_null_class(folder: Path) -> None:
    edit(folder / "unet/config.json", num_class_embeds=11)
    process = read_checkpoint_folder(folder).process
    assert process.conditions == (Condition("y", "int64", classes=11),)  # diffusers knows no null class
    for label in (Condition("y", "int64", classes=10, null=10), Condition("y", "int64", classes=11)):
        TrainRecord(replace(process, conditions=(label,))).write(folder)
        assert read_checkpoint_folder(folder).process.conditions == (label,)
    TrainRecord(replace(process, conditions=(Condition("y", "int64", classes=12, null=3),))).write(folder)
    with pytest.raises(InputError, match=r"train\.json: number of classes and null classes is 12, but diffusers'"):
        read_checkpoint_folder(folder)
    TrainRecord(replace(process, conditions=())).write(folder)
    with pytest.raises(InputError, match=r"train\.json: number of conditions is 0, but diffusers' files .* say 1"):
        read_checkpoint_folder(folder)


def test_a_network_alone_may_have_a_class_label_too(network: Path) -> None:
    edit(network / "config.json", num_class_embeds=3)
    assert read_checkpoint_folder(network, FLAGS).process.conditions == (Condition("y", "int64", classes=3),)
