"""`python -m runtime.sample`, as a user types it, over a network whose samples are known."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from diffusion.reference_loop import initial_noise, reference_loop
from diffusion.samplers import make_table
from runtime.images import quantize
from runtime.runs.folder import sole_run
from runtime.sample import main
from tests.gaussian import GaussianNetwork
from tests.runtime.gaussian_folder import NETWORK, PROCESS, pixels


def expected(num: int, num_steps: int | None = None, seed: int = 0, start: int = 0) -> np.ndarray:
    table = make_table(PROCESS, num_steps=num_steps)
    return reference_loop(table, NETWORK, initial_noise((num, 1, 8, 8), seed, start), seed, start)


def tree(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_no_arguments_make_the_grid(folder, capsys):
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert "64 samples" in out
    assert out.rstrip().endswith("samples/grid.png")
    assert "1000 steps" in err
    assert "\r" not in err  # no progress bar in a pipe
    assert pixels("samples/grid.png").shape[::-1] == (8 * 66 + 2, 8 * 66 + 2)
    assert sorted(os.listdir("samples")) == ["grid.png", "run.json"]


def test_npy_holds_the_chain_before_quantization(folder):
    assert main(["--format", "npy", "--num", "5", "--seed", "9", "--start", "1000", "--steps", "50"]) == 0
    samples = np.load("samples/samples.npy")
    assert samples.dtype == np.float32
    assert samples.shape == (5, 1, 8, 8)
    np.testing.assert_allclose(samples, expected(5, 50, 9, 1000), rtol=0, atol=2e-5)


def test_npz_is_what_fid_tools_read(folder):
    assert main(["--format", "npz", "--num", "5", "--steps", "20"]) == 0
    with np.load("samples/samples.npz") as file:
        assert file.files == ["arr_0"]
        images = file["arr_0"]
    assert images.dtype == np.uint8
    assert images.shape == (5, 8, 8, 1)
    assert np.abs(images.astype(int) - quantize(expected(5, 20)).astype(int)).max() <= 1


def test_png_names_are_sample_indices(folder):
    assert main(["--format", "png", "--num", "3", "--start", "999999", "--steps", "5"]) == 0
    assert sorted(os.listdir("samples")) == ["1000000.png", "1000001.png", "999999.png", "run.json"]
    assert pixels("samples/999999.png").shape == (8, 8)


def test_samples_do_not_depend_on_batch_or_start(folder):
    assert main(["--format", "npy", "--num", "7", "--steps", "10", "--out", "a"]) == 0
    assert main(["--format", "npy", "--num", "7", "--steps", "10", "--out", "b", "--batch-size", "3"]) == 0
    assert main(["--format", "npy", "--num", "2", "--steps", "10", "--out", "c", "--start", "5"]) == 0
    a, b, c = (np.load(f"{name}/samples.npy") for name in "abc")
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a[5:], c)


def test_json_is_one_object_and_all_of_standard_output(folder, capsys):
    assert main(["--json", "--num", "2", "--steps", "5"]) == 0
    out, _ = capsys.readouterr()
    report = json.loads(out)
    assert out.count("\n") == 1
    assert report["files"] == ["samples/grid.png"]
    assert (report["num"], report["steps"], report["seed"], report["sampler"]) == (2, 5, 0, "ddpm")
    assert report["ms_per_step"] > 0
    assert report["first_step_seconds"] > 0


def test_the_same_run_again_replaces_and_another_run_is_refused(folder, capsys):
    assert main(["--num", "2", "--steps", "5", "--format", "png"]) == 0
    first = tree(folder / "samples")
    assert main(["--num", "2", "--steps", "5", "--format", "png"]) == 0
    assert tree(folder / "samples") == first
    capsys.readouterr()
    assert main(["--num", "2", "--steps", "6", "--format", "png"]) == 2
    assert "holds another run's samples (its steps is 5, this run's is 6)" in capsys.readouterr().err
    assert tree(folder / "samples") == first
    assert main(["--num", "1", "--steps", "6", "--format", "png", "--overwrite"]) == 0
    assert sorted(os.listdir("samples")) == ["000000.png", "run.json"]


def test_foreign_files_are_never_overwritten(folder, capsys):
    (folder / "samples").mkdir()
    (folder / "samples" / "grid.png").write_text("mine")
    (folder / "samples" / "notes.txt").write_text("mine too")
    assert main(["--num", "1", "--steps", "2"]) == 2
    assert "grid.png: is in the way" in capsys.readouterr().err
    assert tree(folder / "samples") == {"grid.png": b"mine", "notes.txt": b"mine too"}
    assert main(["--num", "1", "--steps", "2", "--overwrite"]) == 0
    assert (folder / "samples" / "notes.txt").read_text() == "mine too"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--engine", "none.onnx"], 2, "none.onnx: no such file; make one with `python -m export.to_onnx`"),
        (["--engine", "none"], 2, "none: no such engine"),
        (["--engine", "junk.onnx"], 2, "cannot be read as an ONNX model"),
        (["--engine", "junk.txt"], 2, "junk.txt: found the suffix '.txt'"),
        (["--steps", "0"], 2, "steps is 0, expected a whole number from 1 to 1000"),
        (["--steps", "2000"], 2, "steps is 2000, expected a whole number from 1 to 1000"),
        (["--num", "-1"], 2, "num is -1, expected at least 1"),
        (["--num", "0"], 2, "num is 0"),
        (["--num", "many"], 2, "invalid int value: 'many'"),
        (["--seed", "-1"], 2, "seed is -1"),
        (["--seed", str(2**64)], 2, "expected 0 to 2^64 - 1"),
        (["--start", str(2**64 - 1)], 2, "start is 18446744073709551615"),
        (["--batch-size", "0"], 2, "--batch-size is 0"),
        (["--batch-size", "100000000000"], 2, "are available: use --batch-size"),
        (["--threads", "-2"], 2, "--threads is -2"),
        (["--timesteps", "5,5"], 2, "strictly descending"),
        (["--timesteps", "a"], 2, "expected whole numbers such as 999,500,0"),
        (["--from-timestep", "1000"], 2, "from-timestep is 1000, expected a whole number from 0 to 999"),
        (["--timesteps", "999,0", "--spacing", "logsnr"], 2, "spacing and timesteps were both given"),
        (["--trajectory", "1"], 2, "trajectory is 1, expected 2 to 1001"),
        (["--trajectory", "4", "--resume"], 2, "both given"),
        (["--out", "junk.txt"], 2, "junk.txt: is a file, expected a folder"),
        (["--out", "junk.txt/deeper"], 2, "junk.txt/deeper"),
        (["--out", "ftp://host/run"], 2, "found 'ftp://host/run', expected a folder, or a URL such as s3://bucket/run"),
        (["--out", "/proc/nowhere"], 2, "cannot be written"),
        (["--x-init", "none.npy"], 2, "none.npy: no such file"),
        (["--x-init", "junk.npy"], 2, "junk.npy: cannot be read as .npy or .npz"),
        (["--x-init", "junk.png"], 2, "junk.png: cannot be read as an image"),
        (["--x-init", "wrong.npy"], 2, "shape [2, 1, 4, 4], expected [N, 1, 8, 8]"),
        (["--x-init", "two.npy", "--start", str(2**64 - 1)], 2, "expected 0 to 2^64 - 2"),
        (["--x-init", "two.npy", "--seed", str(2**64)], 2, "expected 0 to 2^64 - 1"),
        (["--format", "grid", "--num", "3000000"], 2, "make more than 134,217,728 pixels; use --format png"),
        (
            ["--format", "grid", "--num", "3000000", "--resume"],
            2,
            "make more than 134,217,728 pixels; use --format png",
        ),
        (["--beta-schedule", "squaredcos_cap_v2"], 2, "but unet.onnx was trained with linear"),
        (["--variance-type", "learned_range"], 2, "only fixed_small and fixed_large"),
        (["--clip-sample", "-3"], 2, "expected a positive number or none"),
        (["--device", "cuda"], 4, "--device cpu"),
        (["--device", "tpu"], 2, "invalid choice: 'tpu'"),
        (["--sampler", "magic"], 2, "sampler is 'magic', expected one of ddpm, ddim"),
        (["--sampler", "none.json"], 2, "none.json"),
        (["--invert"], 2, "--invert was given without --x-init"),
        (["--invert", "--x-init", "wrong.npy", "--sampler", "deis"], 2, "sampler is deis, which cannot be inverted"),
        (["--invert", "--x-init", "wrong.npy", "--eta", "0.5"], 2, "eta is 0.5, but an inversion adds no noise"),
        (["--invert", "--x-init", "wrong.npy", "--trajectory", "2"], 2, "--invert and --trajectory were both given"),
        (["--eta", "0.5"], 2, "eta was given, but sampler ddpm does not take it"),
        (["--sampler", "ddim", "--eta", "7"], 2, "eta is 7.0, expected 0 to 1."),
        (["--lambda-min", "50"], 2, "lambda-min is 50.0, expected at most"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(network_is_known, folder, capsys, arguments, code, says):
    for name in ("junk.onnx", "junk.txt", "junk.npy", "junk.png"):
        (folder / name).write_text("junk")
    np.save("wrong.npy", np.zeros((2, 1, 4, 4), np.float32))
    np.save("two.npy", np.zeros((2, 1, 8, 8), np.float32))
    before = tree(folder)
    try:
        found = main(arguments)
    except SystemExit as exit_:  # argparse's own way out
        found = exit_.code
    out, err = capsys.readouterr()
    assert (found, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert tree(folder) == before


def test_debug_adds_the_traceback(folder, capsys):
    assert main(["--steps", "0", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_foreign_onnx_file_needs_flags(folder, capsys):
    NETWORK.save_onnx(folder / "foreign.onnx", with_metadata=False)
    assert main(["--engine", "foreign.onnx"]) == 2
    err = capsys.readouterr().err
    assert "--beta-schedule, --prediction-type, --variance-type, --clip-sample is not given" in err
    flags = ["--beta-schedule", "linear", "--prediction-type", "epsilon", "--variance-type", "fixed_large"]
    common = ["--format", "npy", "--num", "2", "--steps", "10"]
    assert main(["--engine", "foreign.onnx", *flags, "--clip-sample", "1", *common, "--out", "a"]) == 0
    assert main([*common, "--out", "b"]) == 0
    np.testing.assert_array_equal(np.load("a/samples.npy"), np.load("b/samples.npy"))
    assert main(["--engine", "foreign.onnx", *flags, "--clip-sample", "none", *common, "--out", "c"]) == 0
    assert not np.array_equal(np.load("c/samples.npy"), np.load("b/samples.npy"))


def test_a_sample_that_is_not_finite_is_not_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    network = GaussianNetwork(PROCESS, 0.0, 0.5)
    network.offset[777] = np.nan  # every sample breaks there, whatever the clip
    network.save_onnx(tmp_path / "unet.onnx")
    assert main(["--num", "2", "--timesteps", "999,777,0", "--format", "png"]) == 3
    err = capsys.readouterr().err
    assert "2 of 2 samples were not written: sample 0 is not finite from row 1 (timestep 777) on" in err
    assert os.listdir("samples") == ["run.json"]


def test_interrupted_keeps_what_is_finished_and_resumes_to_the_same(folder):
    whole = ["--format", "npz", "--num", "40", "--batch-size", "2", "--out"]
    assert main([*whole, "whole"]) == 0
    command = [sys.executable, "-m", "runtime.sample", *whole, "part"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": _root()})
    manifest = folder / "part" / "run.json"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (manifest.exists() and json.loads(manifest.read_text())["done"] >= 2):
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    done = json.loads(manifest.read_text())["done"]
    assert 2 <= done < 40
    assert f"interrupted; {done} of 40 samples are kept in part" in err
    assert err.count("\n") == 2  # the engine's line and this one
    assert main([*whole, "part", "--resume"]) == 0
    assert (folder / "part" / "samples.npz").read_bytes() == (folder / "whole" / "samples.npz").read_bytes()
    assert main([*whole, "part", "--resume", "--seed", "1"]) == 2


def test_a_run_goes_on_with_the_backend_it_began_with(folder, capsys):
    """Another one rounds otherwise, so its samples are others."""
    assert main(["--num", "2", "--steps", "3", "--backend", "onnxruntime"]) == 0
    assert main(["--num", "2", "--steps", "3", "--backend", "openvino", "--resume"]) == 2
    assert "samples: its backend is 'ONNX Runtime" in capsys.readouterr().err


def test_two_runs_do_not_share_a_folder(folder, capsys):
    with sole_run(folder / "samples"):
        assert main(["--num", "2", "--steps", "3"]) == 2
    assert "samples/run.json: another program is writing it" in capsys.readouterr().err
    assert os.listdir("samples") == []
    assert main(["--num", "2", "--steps", "3"]) == 0


def _root() -> str:

    return str(Path(__file__).parents[2])
