"""train.json is written and read by one class."""

import json

import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.formats.train_record import TrainRecord

PROCESS = Process(SampleShape(1, 8, 8, levels=17), NoiseSchedule.make("linear", 100), variance_type="fixed_large")


def test_it_comes_back_as_it_was(tmp_path):
    assert TrainRecord.read(tmp_path) is None
    record = TrainRecord(PROCESS, {"config": {"steps": 3}, "versions": {}})
    record.write(tmp_path)
    assert TrainRecord.read(tmp_path) == record
    assert list(json.loads((tmp_path / "train.json").read_text())) == [
        "format",
        "process",
        "config",
        "versions",
        "digest",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"format": true}', "format is True, this version reads 2; install the version that wrote it, or copy or"),
        ("[]", "holds a list, expected a JSON object"),
        ('{"format": 1}', "train.json"),
        ('{"format": 2}', "digest is missing"),
        ("{", "not JSON"),
    ],
)
def test_what_is_no_train_json(tmp_path, text, says):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(InputError, match=says):
        TrainRecord.read(tmp_path)


def test_that_of_an_earlier_version_has_no_digest(tmp_path):
    TrainRecord(PROCESS, {"config": 1}).write(tmp_path)
    fields = json.loads((tmp_path / "train.json").read_text()) | {"format": 1}
    digest = fields.pop("digest")
    (tmp_path / "train.json").write_text(json.dumps(fields))
    assert TrainRecord.read(tmp_path) == TrainRecord(PROCESS, {"config": 1}, has_digest=False)
    (tmp_path / "train.json").write_text(json.dumps(fields | {"digest": digest}))  # of format 2, its number changed
    with pytest.raises(InputError, match="format is 1, this version reads 2"):
        TrainRecord.read(tmp_path)
