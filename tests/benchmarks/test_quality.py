"""The quality command end to end, with a network for Gaussian data whose samples are known exactly."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.quality import __main__ as quality
from benchmarks.quality.__main__ import summary_lines
from benchmarks.quality.data import load_images
from benchmarks.quality.samples import Configuration, SampleStore, all_spacings
from benchmarks.quality.score import Gaussian, frechet_distance
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.samplers import make_table
from diffusion.samplers.user_table import table_to_json
from runtime.engines.onnx_runtime import OnnxRuntimeEngine
from runtime.images import quantize
from runtime.sampler import Sampler
from tests.gaussian import GaussianNetwork
from train.datasets import DataRequest
from train.digits import load_digits_split

PROCESS = Process(SampleShape(1, 8, 8, levels=17), NoiseSchedule.make("linear", 40), variance_type="fixed_large")
SMALL = [
    "--num",
    "40",
    "--screening-num",
    "25",
    "--seeds",
    "2",
    "--refine",
    "2",
    "--batch-size",
    "16",
    "--rounds",
    "1",
    "--json",
]


@pytest.fixture(scope="module")
def engine_file(tmp_path_factory):
    return GaussianNetwork(PROCESS, -0.3, 0.5).save_onnx(tmp_path_factory.mktemp("engine") / "unet.onnx")


@pytest.fixture(autouse=True)
def quickly_trained_features(monkeypatch):
    """The classifier is trained anew by each command, and tested by itself elsewhere."""
    monkeypatch.setattr("benchmarks.quality.features._EPOCHS", 2)


def run(engine_file, capsys, *arguments):
    code = quality.main(["--engine", str(engine_file), *SMALL, *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_whole_command_then_resumed(engine_file, tmp_path, capsys):
    out, kept = tmp_path / "results" / "quality.json", tmp_path / "kept"
    chosen = ["--steps", "2,8", "--samplers", "ddpm:fixed_large,ddpm:fixed_small,ddim,dpmpp_2m"]
    common = [*chosen, "--spacings", "trailing,logsnr", "--out", out, "--samples", kept]
    code, printed, _ = run(engine_file, capsys, *common)
    assert code == 0
    report = json.loads(printed)
    assert report == json.loads(out.read_text())
    assert {"command", "commit", "machine", "format"} <= report.keys()
    assert "not Inception-FID" in report["setup"]["features"]["name"]
    assert report["setup"]["features"]["held_out_accuracy"] > 0.5
    assert out.with_suffix(".png").stat().st_size > 10_000

    entries = {(e["sampler"], e["calls"], e["spacing"]): e for e in report["results"]}
    references = [key for key in entries if key[1] == 40]
    assert sorted(references) == [("ddpm:fixed_large", 40, "trailing"), ("ddpm:fixed_small", 40, "trailing")]
    for calls in (2, 8):
        screened = [e for key, e in entries.items() if key[1] == calls]
        assert len(screened) == 8
        assert sum(e["judged"] for e in screened) == 2
        by_screening = sorted(screened, key=lambda e: e["runs"][0]["frechet"])
        assert [e["runs"][0]["seed"] for e in screened] == [0] * 8
        assert {e["sampler"] + e["spacing"] for e in by_screening[:2]} == {
            e["sampler"] + e["spacing"] for e in screened if e["judged"]
        }
    best = report["best_at_8"]
    judged = entries[best["sampler"], 8, best["spacing"]]
    ours = np.array([r["frechet"] for r in judged["runs"] if r["seed"]])
    reference = entries[report["reference"]["sampler"], 40, "trailing"]
    theirs = np.array([r["frechet"] for r in reference["runs"] if r["seed"]])
    first = entries["ddpm:fixed_large", 40, "trailing"]["runs"][0]
    assert (first["seed"], first["frechet"]) == (0, report["screening_frechet"])
    assert best["ratio"] == pytest.approx(ours.mean() / theirs.mean())
    assert best["difference_se"] == pytest.approx(abs((ours - theirs)[0] - (ours - theirs)[1]) / 2)
    assert reference["frechet"] == pytest.approx(min(entries[key]["frechet"] for key in references))
    assert (report["setup"]["num"], report["setup"]["screening_num"]) == (40, 25)
    assert set(report["timing"]["ms_per_call"]) == {"ddpm", "ddim", "dpmpp_2m"}

    # Screening draws fewer, and a file that judges has all.
    for seed, num in ((0, 25), (1, 40)):
        with np.load(kept / f"ddpm.fixed_large-40-trailing-seed{seed}.npz") as fields:
            assert len(fields["arr_0"]) == num

    # The kept samples are what the sampler draws, from equal x_T.
    table = Configuration("ddpm:fixed_small", 40, "trailing")
    engine = OnnxRuntimeEngine(engine_file)
    with np.load(kept / f"{table.name}-seed1.npz") as fields:
        direct = Sampler(engine, sampler=table.table(PROCESS), batch_size=40)
        assert np.array_equal(fields["arr_0"], quantize(direct.sample_float32(40, seed=1)))

    # Again: nothing is drawn, the kept scores stay; another step count joins them.
    for file in kept.iterdir():
        file.unlink()
    code, printed, said = run(engine_file, capsys, *common, "--samplers", "ddpm:fixed_large", "--steps", "5")
    assert code == 0
    assert "ddpm.fixed_large-40-trailing" not in said
    again = json.loads(printed)
    assert {e["calls"] for e in again["results"]} >= {2, 5, 8, 40}
    assert len(again["commands"]) == 2
    for entry in report["results"]:
        assert entry in again["results"]

    # Another number of samples is another measurement.
    code, _, said = run(engine_file, capsys, *common, "--num", "41")
    assert code == 2
    assert "its num is 40, now it is 41; choose another --out" in said


@pytest.mark.parametrize("spacings", [[], ["--spacings", "linspace"]])
def test_equal_timesteps_are_measured_once(engine_file, tmp_path, capsys, spacings):
    out = tmp_path / "q.json"
    arguments = ["--steps", "40", "--samplers", "ddpm:fixed_large,ddim", "--seeds", "1", "--out", out, *spacings]
    code, printed, _ = run(engine_file, capsys, *arguments)
    assert code == 0
    report = json.loads(printed)
    assert [(e["sampler"], e["spacing"]) for e in report["results"]] == [
        ("ddim", "trailing"),
        ("ddpm:fixed_large", "trailing"),
    ]
    assert report["smallest_within"] is None
    assert report["best_at_40"]["ratio_se"] is None


def save_table(path, num_steps=4, scale=1.0):
    """dpmpp_2m with its coefficients of x_start scaled, as a user's table."""
    table = make_table(PROCESS, "dpmpp_2m", num_steps)
    fields = table_to_json(table) | {"sampler": "mine"}
    for row in fields["rows"]:
        row["b"] *= scale
    path.write_text(json.dumps(fields))
    return path


def test_tables_are_judged_beside_the_built_in_samplers_and_a_reference_is_taken_over(engine_file, tmp_path, capsys):
    good, bad = save_table(tmp_path / "good.json"), save_table(tmp_path / "bad.json", 4, 0.5)
    first = tmp_path / "first.json"
    code, printed, _ = run(engine_file, capsys, "--steps", "4", "--samplers", "ddpm,ddim", "--out", first)
    assert code == 0
    drawn = json.loads(printed)

    out = tmp_path / "second.json"
    common = ["--table", good, "--table", bad, "--samplers", "ddim", "--reference-from", first, "--out", out]
    code, printed, said = run(engine_file, capsys, *common)
    assert code == 0
    assert "ddpm-40" not in said  # not drawn again
    report = json.loads(printed)
    (origin,) = [entry["from"] for entry in report["results"] if entry["calls"] == 40]
    assert (origin["file"], origin["engine_sha256"]) == ("first.json", report["setup"]["engine_sha256"])
    assert report["reference"]["from"] == origin
    assert report["reference"]["frechet"] == drawn["reference"]["frechet"]
    assert {entry["calls"] for entry in report["results"]} == {4, 40}  # the tables' numbers of calls, no bisection

    entries = {entry["sampler"]: entry for entry in report["results"] if "table_sha256" in entry}
    assert set(entries) == {"good", "bad"}
    assert all(entry["judged"] and len(entry["runs"]) == 2 for entry in entries.values())
    assert entries["good"]["frechet"] < 0.9 * entries["bad"]["frechet"]
    table, best = report["table_at_4"], report["best_at_4"]
    assert (table["sampler"], best["sampler"]) == ("good", "ddim")
    against = table["against_built_in"]
    assert against["sampler"] == "ddim"
    assert against["ratio"] == pytest.approx(table["frechet"] / best["frechet"])
    assert against["below"] == (against["difference"] + 2 * against["difference_se"] <= 0)
    assert set(against) >= {"precision", "recall", "density", "coverage"}
    assert any(
        line.startswith("4 calls: good") and line.endswith("of ddim, trailing") for line in summary_lines(report)
    )

    # The rows are those of the file: the samples are what `runtime.sample --sampler good.json` draws.
    engine, one = OnnxRuntimeEngine(engine_file), Configuration.of_table(good, PROCESS)
    direct = Sampler(engine, sampler=str(good), batch_size=16).sample_float32(40, seed=1)
    assert np.array_equal(SampleStore(engine, 16, None).draw(one, 1, 40).images, quantize(direct))

    # A file that was changed is another table, and both stay in the results. Without a reference there are no ratios.
    save_table(good, 4, 0.9)
    again = [
        "--table",
        good,
        "--samplers",
        "ddim",
        "--references",
        "none",
        "--seeds",
        "1",
        "--out",
        tmp_path / "3.json",
    ]
    assert run(engine_file, capsys, *again)[0] == 0
    save_table(good, 4, 0.8)
    code, printed, _ = run(engine_file, capsys, *again)
    assert code == 0
    report = json.loads(printed)
    assert [e["sampler"] for e in report["results"] if "table_sha256" in e] == ["good", "good"]
    assert {e["calls"] for e in report["results"]} == {4}
    assert "ratio" not in report["table_at_4"]
    assert report["table_at_4"]["against_built_in"]["ratio"] > 0
    assert "reference" not in report


class Bands(torch.nn.Module):
    """Stands for an Inception network: means of the rows of the first channel."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return x[:, 0].float().mean(dim=2)


def test_features_of_a_torchscript_file(engine_file, tmp_path, capsys):
    torch.jit.script(Bands()).save(str(tmp_path / "bands.pt"))
    out = tmp_path / "q.json"
    arguments = ["--features", tmp_path / "bands.pt", "--samplers", "ddpm,ddim", "--steps", "10", "--out", out]
    code, printed, _ = run(engine_file, capsys, *arguments, "--spacings", "linspace")
    assert code == 0
    report = json.loads(printed)
    assert report["setup"]["features"]["name"] == "TorchScript module bands.pt"
    assert report["results"][0]["runs"][0]["classes"] <= 10  # the judge of classes is not the network of features
    ddim = next(entry for entry in report["results"] if (entry["sampler"], entry["calls"]) == ("ddim", 10))
    images = SampleStore(OnnxRuntimeEngine(engine_file), 40, None).draw(Configuration("ddim", 10, "linspace"), 2, 40)
    real = quantize(load_digits_split().train_images / np.float32(8) - 1)
    ours, theirs = (Gaussian.fit(part[..., 0].mean(axis=2)) for part in (images.images, real))
    assert ddim["runs"][1]["frechet"] == pytest.approx(frechet_distance(ours, theirs), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", "41"], "--steps 41"),
        (["--samplers", "ddim:fixed_small"], "a variance, fixed_small or fixed_large, may be chosen for ddpm alone"),
        (["--samplers", "euler"], "sampler is 'euler'"),
        (["--features", "none.pt"], "--features none.pt: no such file"),
        (["--samplers", "ddim"], "found no ddpm among --samplers; expected ddpm, as --references ddpm"),
        (["--references", "ddim"], "references: found ddim; expected ddpm"),
        (["--num", "3"], "--num is 3, expected at least 5"),
        (["--screening-num", "41"], "--screening-num is 41, expected 5 to --num, which is 40"),
        (["--screening-num", "4"], "--screening-num is 4, expected 5 to --num"),
    ],
)
def test_impossible_requests_are_one_line(engine_file, tmp_path, capsys, arguments, says):
    code, _, said = run(engine_file, capsys, "--out", tmp_path / "q.json", *arguments)
    assert code == 2
    assert says in said
    assert said.splitlines()[-1].startswith("benchmarks.quality: ")


def test_a_longer_request_goes_on_behind_the_kept_samples(engine_file, tmp_path):
    engine, configuration = OnnxRuntimeEngine(engine_file), Configuration("dpmpp_sde_2m", 4, "linspace")
    drawn = []
    store = SampleStore(engine, 3, tmp_path, drawn.append)
    first = store.draw(configuration, 7, 5)
    longer = store.draw(configuration, 7, 9)
    assert sum(drawn) == 9 * 4
    assert np.array_equal(longer.images[:5], first.images)
    assert np.array_equal(longer.images, SampleStore(engine, 9, None).draw(configuration, 7, 9).images)
    shorter = store.draw(configuration, 7, 2)
    assert np.array_equal(shorter.images, first.images[:2])
    assert shorter.seconds == pytest.approx(longer.seconds * 2 / 9)
    assert sum(drawn) == 9 * 4


def test_a_file_of_something_else_is_refused(engine_file, tmp_path, capsys):
    (tmp_path / "q.json").write_text("{}")
    code, _, said = run(engine_file, capsys, "--out", tmp_path / "q.json")
    assert code == 2
    assert "not a result of this command" in said


def test_the_default_spacing_comes_first():
    assert all_spacings()[0] == "trailing"
    assert len(all_spacings()) == 5


def test_data_is_read_as_training_reads_it(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 17, (40, 8, 8, 1), dtype=np.uint8)
    right = np.rint(numbers * (255 / 16)).astype(np.uint8)
    np.savez(tmp_path / "numbers.npz", numbers)
    np.savez(tmp_path / "spread.npz", right)
    for index, pixels in enumerate(right[..., 0].repeat(2, axis=1).repeat(2, axis=2)):
        (tmp_path / "photos" / "train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert("RGB").save(tmp_path / "photos" / "train" / f"{index:02}.png")
    unknown = SampleShape(1, 8, 8)
    for request, sample in (
        (DataRequest(str(tmp_path / "numbers.npz"), held_out=0), PROCESS.sample),  # the network's file says 17
        (DataRequest(str(tmp_path / "numbers.npz"), held_out=0, levels=17), unknown),
        (DataRequest(str(tmp_path / "spread.npz"), held_out=0), PROCESS.sample),
        (DataRequest(str(tmp_path / "spread.npz"), held_out=0), unknown),
    ):
        images, held_out, _, _ = load_images(request, sample)
        assert held_out is None
        np.testing.assert_array_equal(images, right)
    photos = DataRequest(str(tmp_path / "photos"), image_size=8, image_mode="L", split="train")
    images, held_out, _, _ = load_images(photos, unknown)
    assert (images.shape, held_out.shape) == ((38, 8, 8, 1), (2, 8, 8, 1))
    with pytest.raises(InputError, match="no pixel is above 16 of 255, .*give --levels 17"):
        load_images(DataRequest(str(tmp_path / "numbers.npz")), unknown)
