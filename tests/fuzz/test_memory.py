"""What does not fit into the memory or on the disk is refused before it is begun, and nothing is left behind."""

import pytest

from commands import system
from commands.program import make_parser, run_program
from diffusion.errors import InputError
from runtime.sample import main as sample
from runtime.sample_bits import main as sample_bits
from tests.fuzz.outcome import run


def test_as_much_as_there_is_fits_and_a_byte_more_does_not(monkeypatch):
    monkeypatch.setattr(system, "available_bytes", lambda: 2**30)
    system.check_memory("it", 2**30, "take less")
    with pytest.raises(InputError, match=r"it: needs 1.0 GiB of memory, 1.0 GiB are available; take less"):
        system.check_memory("it", 2**30 + 1, "take less")
    with pytest.raises(InputError, match="needs more than"):
        system.check_memory("it", 10**400, "take less")


def test_what_is_available_is_a_part_of_this_machine():
    assert 2**20 < system.available_bytes() < 2**60


def test_a_lack_of_memory_that_nobody_foresaw_is_no_bug(tmp_path):
    def work(args):
        raise MemoryError("Unable to allocate 18.6 GiB")

    outcome = run(lambda argv: run_program(make_parser("train.test", "A test."), work, argv), [], tmp_path)
    outcome.check()
    assert outcome.code == 2
    assert "Unable to allocate 18.6 GiB" in outcome.err


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (sample, "--num 1000000000000 --steps 2 --format npy"),
        (sample, "--num 1000000000000 --steps 2 --format npz"),
        (sample, "--num 1000000000000 --steps 2"),
        (sample_bits, "--num 1000000000000"),
        (sample_bits, f"--num {2**63}"),
    ],
)
def test_more_samples_than_there_is_room_for(work_folder, tmp_path, main, words):
    for name in ("unet.onnx", "heartbeat.onnx"):
        (tmp_path / name).write_bytes((work_folder / name).read_bytes())
    outcome = run(main, words.split(), tmp_path)
    outcome.check()
    assert outcome.code == 2
