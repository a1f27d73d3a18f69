"""Tables from files, such as fitted ones, as samplers of the service."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.samplers import make_table
from runtime.formats.table_file import FittedRecord, TableFile
from runtime.sampler import Sampler
from runtime.serve.image_request import ImageRequest, RequestTables
from tests.runtime.device.host_network import HostNetwork
from tests.runtime.serve.conftest import running_service
from tests.runtime.serve.requests_of_tests import a_process

PROCESS = a_process(checkpoint_sha256="ab12")
RECORD = FittedRecord("data", 3, "dpmpp_2m, quadratic")


def fitted(folder: Path, name: str = "fitted_4.json", checkpoint: str = "ab12", invert: bool = False) -> Path:
    table = make_table(PROCESS, "ddim" if invert else "dpmpp_2m", 4, invert=invert)
    TableFile(replace(table, checkpoint_sha256=checkpoint, notes=()), RECORD, sealed=True).write(folder / name)
    return folder / name


def test_a_request_names_a_table_by_its_file(tmp_path):
    path = fitted(tmp_path)
    with running_service(PROCESS, tables=[path]) as service:
        model = service.http.get("/v1/model").json()
        assert model["samplers"][-1] == "fitted_4"
        assert model["tables"] == {"fitted_4": 4}
        for num in (1, 2, 5):
            answer = service.post("application/x-npz", num=num, seed=8, sampler="fitted_4")
            with np.load(io.BytesIO(answer.content)) as loaded:
                expected = Sampler(HostNetwork(PROCESS), sampler=path, batch_size=3).sample(num, seed=8)
                np.testing.assert_array_equal(loaded["arr_0"], expected)
        assert not np.array_equal(expected, Sampler(HostNetwork(PROCESS), num_steps=4, batch_size=3).sample(5, seed=8))
        refused = service.post(sampler="fitted_4", steps=4)
        assert refused.status_code == 422
        assert "steps was given with a table of one's own" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("of_file", "says"),
    [
        ({"checkpoint": "cd34"}, "was fitted to checkpoint cd34, this network is of ab12"),
        ({"invert": True}, "runs from data to noise, expected one that begins with noise"),
        ({"name": "unipc.json"}, "its sampler would be named unipc, which there is already; rename the file"),
    ],
)
def test_a_table_that_cannot_be_served_is_refused_at_the_start(of_file, says, tmp_path):
    path = fitted(tmp_path, **of_file)
    with pytest.raises(InputError, match=says) as refused:
        RequestTables(PROCESS, "fp32", files=[path])
    assert str(refused.value).startswith(str(path))


def test_two_files_of_one_name_are_refused_and_force_runs_what_was_fitted_to_another(tmp_path):
    path = fitted(tmp_path)
    with pytest.raises(InputError, match="there is already"):
        RequestTables(PROCESS, "fp32", files=[path, path])
    other = fitted(tmp_path, checkpoint="cd34")
    tables = RequestTables(PROCESS, "fp32", True, [other])
    assert len(tables.table(ImageRequest(sampler="fitted_4"))) == 4
