"""Which chain `python -m runtime.sample` runs: samplers, timesteps, tables of one's own, what it begins with."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.errors import InputError
from diffusion.process import SampleShape
from diffusion.reference_loop import initial_noise, reference_loop
from diffusion.samplers import SAMPLERS, make_table
from diffusion.samplers.user_table import table_to_json
from runtime.formats.table_file import FittedRecord, TableFile
from runtime.images import dequantize, quantize
from runtime.sample import main
from runtime.trajectory import Trajectory
from tests.runtime.gaussian_folder import NETWORK, PROCESS, pixels, seal_file


def test_trajectory_runs_from_noise_to_image(folder):
    assert main(["--format", "npy", "--num", "3", "--steps", "9", "--trajectory", "4"]) == 0
    with np.load("samples/trajectory.npz") as file:
        timesteps, x, x_start = file["timesteps"], file["x"], file["x_start"]
    assert x.shape == x_start.shape == (4, 3, 1, 8, 8)
    table = make_table(PROCESS, num_steps=9)
    np.testing.assert_array_equal(timesteps, [*table.timesteps[[0, 3, 6]], -1])
    np.testing.assert_array_equal(x[0], initial_noise((3, 1, 8, 8), 0, 0))
    np.testing.assert_array_equal(x[-1], np.load("samples/samples.npy"))
    # Beside a state stands the prediction made from it.
    alpha_bar = PROCESS.schedule.alpha_bar[timesteps[1]]
    eps = NETWORK(x[1].astype(float), np.full(3, timesteps[1]))
    np.testing.assert_allclose(
        x_start[1], np.clip((x[1] - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar), -1, 1), atol=1e-4
    )
    for name in ("trajectory_x.png", "trajectory_x_start.png"):
        assert pixels(f"samples/{name}").shape[::-1] == (4 * 66 + 2, 3 * 66 + 2)


def test_an_animation_shows_every_state_above_what_is_predicted_from_it(folder):
    assert main(["--num", "3", "--steps", "9", "--trajectory", "4"]) == 0
    with np.load("samples/trajectory.npz") as file:
        x, x_start = quantize(file["x"].reshape(-1, 1, 8, 8)), quantize(file["x_start"].reshape(-1, 1, 8, 8))
    with Image.open("samples/trajectory.webp") as animation:
        assert (animation.n_frames, animation.size) == (4, (3 * 66 + 2, 2 * 66 + 2))
        assert animation.info["loop"] == 0
        durations = []
        for state in range(4):
            animation.seek(state)
            animation.load()
            durations.append(animation.info["duration"])
            pixels = np.asarray(animation.convert("L"))[2:, 2:].reshape(2, 66, 3, 66)[:, :64:8, :, :64:8]
            np.testing.assert_array_equal(pixels[0].transpose(1, 0, 2), x[3 * state : 3 * state + 3, :, :, 0])
            np.testing.assert_array_equal(pixels[1].transpose(1, 0, 2), x_start[3 * state : 3 * state + 3, :, :, 0])
    assert durations == [500, 500, 500, 2000]


def test_an_animation_of_wide_samples_shows_as_many_as_fit(tmp_path):
    shape = SampleShape(1, 2, 6000)
    trajectory = Trajectory(make_table(PROCESS, num_steps=2), shape, 2, 8)
    trajectory.save_animation(tmp_path / "wide.webp")
    with Image.open(tmp_path / "wide.webp") as animation:
        assert animation.size == (2 * 6002 + 2, 2 * 4 + 2)


@pytest.mark.parametrize(("num_states", "is_taken"), [(1, False), (2, True), (6, True), (7, False)])
def test_a_trajectory_has_two_states_to_one_more_than_the_steps(num_states, is_taken):
    table = make_table(PROCESS, num_steps=5)
    if is_taken:
        assert len(Trajectory(table, PROCESS.sample, num_states, 1).timesteps) == num_states
    else:
        with pytest.raises(InputError, match=f"trajectory is {num_states}, expected 2 to 6, the states of 5 steps"):
            Trajectory(table, PROCESS.sample, num_states, 1)


def test_a_trajectory_follows_the_first_eight_samples_whatever_the_batch(folder):
    command = ["--format", "npy", "--num", "11", "--steps", "5", "--trajectory", "2"]
    assert main([*command, "--batch-size", "3"]) == 0
    with np.load("samples/trajectory.npz") as file:
        assert file["x"].shape == file["x_start"].shape == (2, 8, 1, 8, 8)
        np.testing.assert_array_equal(file["x"][-1], np.load("samples/samples.npy")[:8])


def test_explicit_timesteps_and_spacing(folder, capsys):
    assert main(["--json", "--timesteps", "999,500,0", "--num", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 3
    assert main(["--json", "--steps", "7", "--spacing", "leading", "--num", "1", "--out", "b"]) == 0
    out, err = capsys.readouterr()
    assert "begins at timestep 852" in json.loads(out)["notes"][0]
    assert "note: leading spacing begins at timestep 852" in err


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_and_follows_the_float64_loop(folder, name):
    assert main(["--format", "npy", "--num", "3", "--steps", "20", "--sampler", name]) == 0
    table = make_table(PROCESS, name, 20)
    reference = reference_loop(table, NETWORK, initial_noise((3, 1, 8, 8), 0, 0))
    np.testing.assert_allclose(np.load("samples/samples.npy"), reference, rtol=0, atol=4 * table.absolute_tolerance())


def test_eta_reaches_the_sampler(folder):
    assert main(["--format", "npy", "--num", "2", "--steps", "20", "--sampler", "ddim", "--eta", "1"]) == 0
    reference = reference_loop(make_table(PROCESS, "ddim", 20, eta=1.0), NETWORK, initial_noise((2, 1, 8, 8), 0, 0))
    np.testing.assert_allclose(np.load("samples/samples.npy"), reference, rtol=0, atol=4e-5)


def test_the_list_of_samplers_needs_no_engine(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--list-samplers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(SAMPLERS)
    assert "--eta" in lines[1 + list(SAMPLERS).index("ddim")]


def test_given_states_are_taken_as_they_are(folder):
    states = initial_noise((3, 1, 8, 8), 77, 0)
    np.save("states.npy", states)
    assert main(["--format", "npy", "--x-init", "states.npy", "--from-timestep", "300", "--steps", "10"]) == 0
    table = make_table(PROCESS, num_steps=10, from_timestep=300)
    np.testing.assert_allclose(np.load("samples/samples.npy"), reference_loop(table, NETWORK, states), atol=2e-5)


def test_given_images_are_noised_to_the_timestep(folder):
    image = np.full((8, 8), 200, np.uint8)
    Image.fromarray(image).save("seven.png")
    arguments = ["--format", "npy", "--x-init", "seven.png", "--from-timestep", "5", "--num", "4"]
    assert main(arguments) == 0
    samples = np.load("samples/samples.npy")
    assert len({sample.tobytes() for sample in samples}) == 4  # variations of one image
    np.testing.assert_allclose(samples.mean(), 200 / 127.5 - 1, atol=0.05)  # close to it, from so late a timestep


def test_an_inverted_image_samples_to_itself(folder):
    rng = np.random.default_rng(0)
    images = rng.integers(60, 120, (3, 8, 8, 1), dtype=np.uint8)
    np.save("images.npy", images)
    chain = ["--steps", "200", "--format", "npy", "--clip-sample", "none"]  # a clip loses what it cuts off
    assert main(["--x-init", "images.npy", "--invert", *chain, "--out", "noise"]) == 0
    noise = np.load("noise/samples.npy")
    # For Gaussian data the flow only shifts and scales: x_T = (x_0 − μ)/s.
    np.testing.assert_allclose(noise, (dequantize(images) + 0.3) / 0.4, atol=0.05)
    assert main(["--x-init", "noise/samples.npy", "--sampler", "ddim", *chain, "--out", "again"]) == 0
    np.testing.assert_allclose(np.load("again/samples.npy"), dequantize(images), atol=0.05)


def test_a_table_of_ones_own_draws_what_its_sampler_draws(folder, capsys):
    common = ["--format", "npy", "--num", "3", "--json"]
    Path("mine.json").write_text(json.dumps(table_to_json(make_table(PROCESS, "unipc", 7, "logsnr"))))
    assert main([*common, "--sampler", "unipc", "--steps", "7", "--spacing", "logsnr", "--out", "named"]) == 0
    assert main([*common, "--sampler", "mine.json", "--out", "mine"]) == 0
    np.testing.assert_array_equal(np.load("mine/samples.npy"), np.load("named/samples.npy"))
    named, mine = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (mine["sampler"], mine["steps"]) == (named["sampler"], named["steps"]) == ("unipc", 7)
    assert mine["conditioning"] == named["conditioning"] == make_table(PROCESS, "unipc", 7, "logsnr").conditioning


def test_a_fitted_table_of_another_checkpoint_is_refused(folder, capsys):
    table = replace(make_table(PROCESS, "ddim", 3), checkpoint_sha256="ab12" * 16)
    TableFile(table, FittedRecord("data", 0, "ddim, trailing"), sealed=True).write(Path("fitted.json"))
    words = ["--sampler", "fitted.json", "--num", "1", "--format", "npy"]
    assert main([*words, "--out", "none"]) == 2
    said = capsys.readouterr().err
    assert "table of ddim: was fitted to checkpoint ab12ab12ab12, that of this network is not known" in said
    assert "--force" in said
    assert said.count("\n") == 1
    assert not Path("none").exists()
    assert main([*words, "--force", "--out", "forced"]) == 0
    assert "note: table of ddim: was fitted to checkpoint ab12" in capsys.readouterr().err
    assert main(["--sampler", "ddim", "--steps", "3", *words[2:], "--out", "named"]) == 0
    np.testing.assert_array_equal(np.load("forced/samples.npy"), np.load("named/samples.npy"))


def test_a_table_that_runs_upwards_begins_with_images_as_they_are(folder, capsys):
    np.save("images.npy", np.random.default_rng(0).integers(60, 120, (2, 8, 8, 1), dtype=np.uint8))
    Path("up.json").write_text(json.dumps(table_to_json(make_table(PROCESS, num_steps=6, invert=True))))
    begin = ["--format", "npy", "--x-init", "images.npy"]
    assert main([*begin, "--invert", "--steps", "6", "--out", "inverted"]) == 0
    assert main([*begin, "--sampler", "up.json", "--out", "up"]) == 0
    np.testing.assert_array_equal(np.load("up/samples.npy"), np.load("inverted/samples.npy"))
    assert "note: the timesteps ascend: the chain runs from data to noise" in capsys.readouterr().err
    assert main(["--sampler", "up.json", "--out", "none"]) == 2
    assert "up.json: its chain runs from data to noise; give the images with --x-init" in capsys.readouterr().err
    assert main([*begin, "--sampler", "up.json", "--trajectory", "2", "--out", "none"]) == 2
    assert "a trajectory goes from noise to data" in capsys.readouterr().err
    assert not Path("none").exists()


def test_noise_where_the_network_saw_data_is_remarked_on(folder, capsys):
    np.save("states.npy", initial_noise((1, 1, 8, 8), 77, 0))
    middle = ["--from-timestep", "300", "--steps", "2", "--json"]
    assert main([*middle, "--num", "1"]) == 0
    out, err = capsys.readouterr()
    (note,) = json.loads(out)["notes"]
    assert "begins at timestep 300" in note
    assert "pure noise is not what the network saw there" in err
    assert main([*middle, "--x-init", "states.npy", "--out", "given"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["notes"] == []
    assert "pure noise" not in err


def test_lambda_min_leaves_out_the_noisiest(folder, capsys):
    assert main(["--format", "npy", "--num", "2", "--steps", "5", "--lambda-min", "-3"]) == 0
    table = make_table(PROCESS, num_steps=5, lambda_min=-3.0)
    assert table.timesteps[0] < 999
    reference = reference_loop(table, NETWORK, initial_noise((2, 1, 8, 8), 0, 0))
    np.testing.assert_allclose(np.load("samples/samples.npy"), reference, rtol=0, atol=2e-5)


def test_a_picture_is_read_as_training_reads_it(folder, capsys):
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(deep))).save("deep.png", exif=exif)
    np.save("same.npy", (deep >> 8).astype(np.uint8)[None, ..., None])
    chain = ["--format", "npy", "--from-timestep", "5", "--num", "1"]
    assert main([*chain, "--x-init", "deep.png", "--out", "picture"]) == 0
    assert main([*chain, "--x-init", "same.npy", "--out", "array"]) == 0
    np.testing.assert_array_equal(np.load("picture/samples.npy"), np.load("array/samples.npy"))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("color.png")
    assert main([*chain, "--x-init", "color.png", "--out", "none"]) == 2
    assert "color.png: its mode is RGB, but the network draws gray" in capsys.readouterr().err
    np.save("huge.npy", np.full((1, 1, 8, 8), 1e300))
    assert main([*chain, "--x-init", "huge.npy", "--out", "none"]) == 2
    assert "huge.npy: 1e+300 at [0, 0, 0, 0], expected finite numbers that float32 holds" in capsys.readouterr().err
    assert not Path("none").exists()


def test_levels_as_numbers_are_not_taken_for_nearly_black_images(folder, capsys):
    np.save("numbers.npy", np.random.default_rng(0).integers(0, 17, (1, 8, 8, 1), dtype=np.uint8))
    assert main(["--x-init", "numbers.npy", "--from-timestep", "5"]) == 2
    assert "its brightest pixel is 16 of 255, nearly black" in capsys.readouterr().err


def test_a_network_that_nothing_vouches_for_is_said_with_its_hash(folder, capsys):
    NETWORK.save_onnx(folder / "unet.onnx")
    sha256 = hashlib.sha256((folder / "unet.onnx").read_bytes()).hexdigest()
    assert main(["--num", "1", "--steps", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert f"note: unet.onnx has no digest: a changed byte is not noticed; its SHA-256 is {sha256}" in err
    report = json.loads(out)
    assert report["engine"]["has_digest"] is False
    assert "has no digest" in report["notes"][0]
    seal_file(folder / "unet.onnx")
    assert main(["--num", "1", "--steps", "2", "--json", "--overwrite"]) == 0
    out, err = capsys.readouterr()
    assert "digest" not in err
    assert json.loads(out)["engine"]["has_digest"] is True
