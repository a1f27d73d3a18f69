"""`--steps N` of a checkpoint draws what diffusers' own pipeline draws with num_inference_steps=N from equal noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline
from diffusers.pipelines.ddim import pipeline_ddim
from diffusers.pipelines.ddpm import pipeline_ddpm
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm

from diffusion.normal import draw_number, normal_batch
from export import ExportRequest, export_onnx
from runtime import Sampler
from runtime.sample import main
from tests.checkpoints import LEAST, save_tiny_checkpoint

NUM, SEED = 2, 5
SPACINGS = ["leading", "trailing", "linspace"]


def pipeline_images(pipeline, num_steps: int, shape: tuple[int, ...], monkeypatch, **arguments) -> np.ndarray:
    """x_0 of a pipeline with our noise, float32 [N, C, H, W] in [−1, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.set_timesteps(num_steps)
    visited = [int(timestep) for timestep in pipeline.scheduler.timesteps]
    draws = iter([None, *visited])

    def our_noise(*_, **__) -> torch.Tensor:
        timestep = next(draws)
        z = normal_batch(shape, [SEED] * NUM, list(range(NUM)), [draw_number(timestep)] * NUM)
        # diffusers adds noise to the image itself where the last timestep is not 0; we never do.
        return torch.from_numpy(z if timestep is None or timestep != visited[-1] else 0 * z)

    for module in (pipeline_ddpm, pipeline_ddim, scheduling_ddpm, scheduling_ddim):
        monkeypatch.setattr(module, "randn_tensor", our_noise)
    images = pipeline(NUM, num_inference_steps=num_steps, output_type="np", **arguments).images
    return images.transpose(0, 3, 1, 2) * 2 - 1


def our_images(out: Path, *arguments: str) -> np.ndarray:
    words = ["--num", str(NUM), "--seed", str(SEED), "--format", "npy", "--out", str(out), "--threads", "1"]
    assert main([*arguments, *words]) == 0
    return np.clip(np.load(out / "samples.npy"), -1, 1)


@pytest.mark.parametrize("num_steps", [7, 48])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_steps_of_a_folder_are_those_of_its_pipeline(tmp_path, monkeypatch, spacing, num_steps):
    folder = save_tiny_checkpoint(tmp_path / "checkpoint", timestep_spacing=spacing)
    theirs = pipeline_images(DDPMPipeline.from_pretrained(folder), num_steps, (1, 8, 8), monkeypatch)
    ours = our_images(tmp_path / "out", "--engine", str(folder), "--steps", str(num_steps))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert np.abs(theirs).mean() > 0.1


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "learned_range"])
def test_other_processes(tmp_path, monkeypatch, variance_type, prediction_type):
    folder = save_tiny_checkpoint(
        tmp_path / "checkpoint",
        variance_type=variance_type,
        prediction_type=prediction_type,
        timestep_spacing="linspace",
        beta_schedule="squaredcos_cap_v2",
        clip_sample_range=0.7,
        num_train_timesteps=60,
    )
    theirs = pipeline_images(DDPMPipeline.from_pretrained(folder), 9, (1, 8, 8), monkeypatch)
    ours = our_images(tmp_path / "out", "--engine", str(folder), "--steps", "9")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("clipped_output", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_as_the_pipeline_of_diffusers(tmp_path, monkeypatch, spacing, eta, clipped_output):
    folder = save_tiny_checkpoint(tmp_path / "checkpoint", timestep_spacing=spacing, variance_type="fixed_small")
    pipeline = DDIMPipeline.from_pretrained(folder)
    arguments = {} if not clipped_output else {"use_clipped_model_output": True}  # its default is not to
    theirs = pipeline_images(pipeline, 10, (1, 8, 8), monkeypatch, eta=eta, **arguments)
    flags = ["--sampler", "ddim", "--steps", "10", "--eta", str(eta), "--engine", str(folder)]
    if not clipped_output:
        flags.append("--no-use-clipped-model-output")
    ours = our_images(tmp_path / "out", *flags)
    # Its tables are float32, which moves x_0 by 4e-5; in float64 tests/diffusion/samplers has 2e-13 for the same.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_engines_carry_the_spacing_and_the_flag_overrides_it(tmp_path, capsys):
    folder = save_tiny_checkpoint(tmp_path / "checkpoint", unet=LEAST, timestep_spacing="linspace")
    export_onnx(ExportRequest(tmp_path / "unet.onnx", folder))
    engine = str(tmp_path / "unet.onnx")
    wanted = Sampler(folder, num_steps=7).table.timesteps
    assert wanted.tolist() == [999, 832, 666, 500, 333, 166, 0]
    np.testing.assert_array_equal(Sampler(engine, num_steps=7).table.timesteps, wanted)
    assert Sampler(engine, num_steps=7, spacing="trailing").table.timesteps[-1] > 0

    def run(*flags: str) -> tuple[str | None, str]:
        assert main(["--engine", engine, "--num", "1", "--json", "--overwrite", "--out", str(tmp_path), *flags]) == 0
        out, err = capsys.readouterr()
        return json.loads(out)["spacing"], err

    spacing, said = run("--steps", "7")
    assert spacing == "linspace"
    assert "7 steps (linspace spacing, as the checkpoint says)" in said
    spacing, said = run("--steps", "7", "--spacing", "trailing")
    assert spacing == "trailing"
    assert "(trailing spacing, as --spacing says)" in said
    spacing, said = run("--timesteps", "999,0")
    assert spacing is None
    assert "2 steps, 1 samples" in said


def test_a_file_that_says_nothing_is_sampled_as_before(tmp_path, capsys):
    from diffusion.noise_schedule import NoiseSchedule
    from diffusion.process import Process, SampleShape
    from tests.gaussian import GaussianNetwork

    process = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear"))
    GaussianNetwork(process, 0.0, 0.5).save_onnx(tmp_path / "unet.onnx")
    flags = ["--engine", str(tmp_path / "unet.onnx"), "--num", "1", "--steps", "4", "--out", str(tmp_path / "out")]
    assert main(flags) == 0
    assert "(trailing spacing, as the checkpoint does not say)" in capsys.readouterr().err


def test_train_json_without_a_spacing_goes_by_the_scheduler(tmp_path):
    from runtime.engines.checkpoint_folder import read_checkpoint_folder

    folder = save_tiny_checkpoint(tmp_path, timestep_spacing="linspace")
    process = read_checkpoint_folder(folder).process.to_json()
    del process["timestep_spacing"]
    (folder / "train.json").write_text(json.dumps({"format": 1, "process": process}))
    assert read_checkpoint_folder(folder).process.timestep_spacing == "linspace"
