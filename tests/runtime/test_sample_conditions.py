"""Classes, guidance and other conditions on the command line: files, grids, resumption, and what is refused."""

import json
import os

import numpy as np
import onnx
import pytest
from PIL import Image

from diffusion.conditions import Condition
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import METADATA_KEY, Process, SampleShape
from runtime.gather import main as gather
from runtime.initial_states import load_conditions
from runtime.sample import main
from runtime.sampler import Sampler

LABEL, SCALE = Condition("y", "int64", classes=3, null=3), Condition("guidance", "float32", default=1.0)
LOW_RES = Condition("low_res", "float32", (1, 4, 4))
BASE = ["--engine", "unet.onnx", "--backend", "onnxruntime", "--steps", "4", "--threads", "1"]


def save(path, *conditions):
    """prediction = 0.5 x + 0.1 guidance · y + 0.1 low_res, and t too."""
    process = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 20), conditions=conditions)
    names = [each.name for each in conditions]
    inputs = {"y": "int64[N] y", "guidance": "float[N] guidance", "low_res": "float[N,1,4,4] low_res"}
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    net (float[N,1,4,4] x, float[N] t{"".join(f", {inputs[name]}" for name in names)}) => (float[N,1,4,4] prediction) {{
        column = Constant <value_ints = [-1, 1, 1, 1]> ()
        half = Constant <value_float = 0.5> ()
        small = Constant <value_float = 0.01> ()
        tenth = Constant <value_float = 0.1> ()
        time = Reshape(t, column)
        scaled_time = Mul(time, small)
        of_x = Mul(x, half)
        with_time = Add(of_x, scaled_time)
    """
    last = "with_time"
    if LABEL in conditions:
        text += "label = Cast <to = 1> (y)\n label_column = Reshape(label, column)\n part = Mul(label_column, tenth)\n"
        part = "part"
        if SCALE in conditions:
            text += "scale_column = Reshape(guidance, column)\n scaled = Mul(part, scale_column)\n"
            part = "scaled"
        text += f"with_label = Add({last}, {part})\n"
        last = "with_label"
    if LOW_RES in conditions:
        text += f"of_low_res = Mul(low_res, tenth)\n with_low_res = Add({last}, of_low_res)\n"
        last = "with_low_res"
    model = onnx.parser.parse_model(text + f"prediction = Identity({last})\n }}")
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(process.to_json())})
    onnx.save(model, str(path))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    save(tmp_path / "unet.onnx", LABEL, SCALE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drawn(*flags):
    assert main([*BASE, "--format", "npy", "--out", "out", "--overwrite", *flags]) == 0
    return np.load("out/samples.npy")


def test_the_command_draws_what_the_sampler_draws(folder, capsys):
    found = drawn("--class", "2,0,null", "--guidance", "2.0", "--num", "7", "--seed", "3", "--start", "5")
    sampler = Sampler("unet.onnx", backend="onnxruntime", num_steps=4, threads=1)
    expected = sampler.sample_float32(7, seed=3, start=5, classes=[2, 0, 3], guidance=2.0)
    np.testing.assert_array_equal(found, expected)
    alone = sampler.sample_float32(1, seed=3, start=6, classes=[2, 0, 3], guidance=2.0)
    np.testing.assert_array_equal(found[1], alone[0])


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]], ids=["one-process", "workers"])
def test_a_run_in_shards_gives_each_sample_its_class(folder, capsys, workers):
    asked = [*BASE, "--class", "2,0,null", "--guidance", "2.0", "--num", "11", "--seed", "3", "--start", "5"]
    assert main([*asked, "--format", "npz", "--out", "one"]) == 0
    assert main([*asked, "--shard-size", "4", "--batch-size", "3", "--out", "run", *workers]) == 0
    assert gather(["run"]) == 0
    with np.load("run/samples.npz") as found, np.load("one/samples.npz") as expected:
        np.testing.assert_array_equal(found["arr_0"], expected["arr_0"])
    capsys.readouterr()
    assert main([*asked, "--class", "2,1,null", "--out", "run", "--resume"]) == 2
    assert "its condition_y is" in capsys.readouterr().err


def test_the_report_says_what_was_asked_for(folder, capsys):
    assert main([*BASE, "--class", "all", "--guidance", "2,1", "--json", "--format", "npz", "--out", "o"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["conditions"] == {"y": [0, 1, 2], "guidance": [2.0, 1.0]}
    assert report["num"] == 66  # as many of each class, 64 or a few more
    assert json.loads((folder / "o/run.json").read_text())["identity"]["condition_y"] == [0, 1, 2]


def test_a_grid_has_a_row_for_each_class(folder):
    assert main([*BASE, "--class", "0,1,2", "--num", "12", "--out", "grid"]) == 0
    assert main([*BASE, "--class", "0", "--num", "12", "--out", "square"]) == 0
    with Image.open("grid/grid.png") as rows, Image.open("square/grid.png") as square:
        assert rows.width > rows.height  # 3 rows of 4
        assert square.size == rows.size  # 12 make 4 columns of 3 too, in another order
        assert rows.tobytes() != square.tobytes()
    assert main([*BASE, "--class", "0,1,2", "--num", "10", "--start", "1", "--out", "odd"]) == 0
    with Image.open("odd/grid.png") as odd:
        assert odd.size == rows.size  # the rows of classes 0 and 2 end early


def test_a_run_goes_on_with_the_same_conditions_alone(folder, capsys):
    whole = drawn("--class", "2,0", "--guidance", "1.5", "--num", "6", "--batch-size", "2")
    flags = [*BASE, "--format", "npy", "--num", "6", "--batch-size", "2", "--out", "part"]
    same = ["--class", "2,0", "--guidance", "1.5"]
    assert main([*flags, *same]) == 0
    assert main([*flags, *same, "--resume"]) == 0
    np.testing.assert_array_equal(np.load("part/samples.npy"), whole)
    capsys.readouterr()
    for other, says in (
        (["--class", "2,1", "--guidance", "1.5"], "its condition_y is [2, 0], this run's is [2, 1]"),
        (["--class", "2,0", "--guidance", "2"], "its condition_guidance is [1.5], this run's is [2.0]"),
    ):
        assert main([*flags, *other, "--resume"]) == 2
        assert says in capsys.readouterr().err


def test_trajectories_and_given_states_have_classes_too(folder):
    plain = drawn("--class", "0", "--num", "2")
    followed = drawn("--class", "0,2", "--num", "2", "--trajectory", "3")
    np.testing.assert_array_equal(followed[0], plain[0])
    assert not np.array_equal(followed[1], plain[1])
    np.testing.assert_array_equal(np.load("out/trajectory.npz")["x"][-1], followed)
    np.save("states.npy", np.zeros((1, 1, 4, 4), np.float32))
    given = drawn("--class", "0,2", "--x-init", "states.npy", "--num", "2", "--seed", "1")
    again = drawn("--class", "0,2", "--x-init", "states.npy", "--num", "2", "--seed", "1", "--guidance", "0")
    np.testing.assert_array_equal(again[0], given[0])  # guidance moves no class 0 in this network
    assert not np.array_equal(again[1], given[1])


def test_images_to_enlarge_come_from_a_file(folder):
    save(folder / "unet.onnx", LOW_RES)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 1, 4, 4)).astype(np.float32)
    np.save("low.npy", images)
    found = drawn("--condition", "low_res=low.npy", "--num", "5")
    sampler = Sampler("unet.onnx", backend="onnxruntime", num_steps=4, threads=1)
    np.testing.assert_array_equal(found, sampler.sample_float32(5, conditions={"low_res": images}))
    np.save("bytes.npy", np.full((1, 4, 4, 1), 255, np.uint8))
    np.testing.assert_array_equal(
        drawn("--condition", "low_res=bytes.npy", "--num", "1"),
        sampler.sample_float32(1, conditions={"low_res": np.ones((1, 4, 4))}),
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "draws by class and was given none; give --class with classes 0 to 2, null for no class, or all"),
        (["--class", "3,4"], "class is 4, expected a whole number from 0 to 2, or null"),
        (["--class", "one"], "found 'one', expected numbers such as 0,1,2, all or null"),
        (["--class", "1", "--guidance", "inf"], "guidance is inf, expected a finite number"),
        (["--class", "1", "--guidance", "x"], "found 'x', expected a number such as 2.0"),
        (["--class", "1", "--condition", "low_res=a.npy"], "low_res is 'a.npy', expected a number"),
        (
            ["--class", "1", "--condition", "low_res=1"],
            "condition low_res was given, and the network's are: y, guidance",
        ),
        (["--class", "1", "--condition", "y=1"], "y was given twice"),
        (["--class", "1", "--condition", "y"], "found 'y', expected NAME=FILE or NAME=NUMBER"),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_written(folder, capsys, flags, says):
    try:
        code = main([*BASE, "--out", "out", *flags])
    except SystemExit as end:
        code = end.code
    assert code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in error
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 1, 4, 5), np.float32), "holds float32 of shape [2, 1, 4, 5], expected [N, 1, 4, 4]"),
        (np.full((1, 1, 4, 4), np.nan, np.float32), "expected finite numbers"),
        (np.zeros((1, 1, 4, 4), np.int64), "found int64"),
        (np.zeros((1, 4, 5, 1), np.uint8), "holds uint8 of shape [1, 4, 5, 1], expected [N, 4, 4, 1]"),
        (None, "no such file; --condition takes .npy or .npz"),
    ],
)
def test_a_file_of_another_shape_or_type_is_refused(folder, capsys, array, says):
    save(folder / "unet.onnx", LOW_RES)
    if array is not None:
        np.save("low.npy", array)
    assert main([*BASE, "--out", "out", "--condition", "low_res=low.npy"]) == 2
    assert says in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_class_is_a_condition_too(folder):
    np.testing.assert_array_equal(drawn("--condition", "y=2", "--num", "2"), drawn("--class", "2", "--num", "2"))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "low.npy")
    process = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 20), conditions=(LOW_RES,))
    with pytest.raises(InputError, match="low.npy: is a pipe, expected a regular file; --condition takes .npy or .npz"):
        load_conditions([("low_res", str(tmp_path / "low.npy"))], process)


def test_an_unconditional_network_takes_none(folder, capsys):
    save(folder / "unet.onnx")
    assert main([*BASE, "--out", "out", "--class", "1"]) == 2
    assert "the network is unconditional; leave --class (classes=) out" in capsys.readouterr().err
    assert main([*BASE, "--out", "out", "--guidance", "2"]) == 2
    assert "the network is unconditional; leave --guidance (guidance=) out" in capsys.readouterr().err
