"""What a network was trained to do is told before work starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export import ExportRequest, source
from export.process_line import FACTS, folder_origins, process_line
from runtime.formats.train_record import TRAIN_JSON
from runtime.process_flags import ProcessFlags
from tests.gaussian import GaussianNetwork

PROCESS = Process(SampleShape(1, 4, 4), NoiseSchedule.make("squaredcos_cap_v2", 50), "sample", "learned_range", None)


def test_every_fact_has_its_origin() -> None:
    origins = {name: f"<{name}>" for name in FACTS}
    assert process_line(PROCESS, origins) == (
        "predicts sample (<prediction_type>), noise squaredcos_cap_v2, T = 50 (<schedule>), "
        "variance learned_range (<variance_type>), x_start not clipped (<clip_sample>)"
    )
    assert process_line(PROCESS, dict.fromkeys(FACTS, "here")) == (
        "predicts sample, noise squaredcos_cap_v2, T = 50, variance learned_range, x_start not clipped (all from here)"
    )


def test_a_folder_names_the_file_that_decides(tmp_path: Path) -> None:
    assert set(folder_origins(tmp_path).values()) == {"scheduler_config.json"}
    (tmp_path / TRAIN_JSON).touch()
    assert set(folder_origins(tmp_path).values()) == {"train.json"}


def test_an_onnx_file_and_the_flags_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 50))
    path = GaussianNetwork(process, 0.2, 0.5).save_onnx(tmp_path / "unet.onnx")
    flags = ProcessFlags(variance_type="fixed_large", clip_sample="none")
    source.read_source(ExportRequest(tmp_path / "unet.xml", onnx=path, process=flags))
    assert capsys.readouterr().err == (
        f"{path}: predicts epsilon (its metadata), noise linear, T = 50, beta 0.0001 to 0.02 (its metadata), "
        "variance fixed_large (--variance-type), x_start not clipped (--clip-sample)\n"
    )
