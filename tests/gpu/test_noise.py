"""The noise on the device has the bits of NumPy's."""

import numpy as np
import pytest

from benchmarks.device.device_arrays import DeviceArrays, differing_elements
from diffusion.normal import draw_number, normal_batch

MANY = 10_000_000


def differing_normals(machine, seeds, indices, draws, num_elements):
    """Make N samples' normals on the device and with NumPy; how many differ in a bit."""
    num = len(seeds)
    arrays = {
        "out": np.full((num, num_elements), np.nan, np.float32),
        "seed": np.array(seeds, np.uint64),
        "sample_index": np.array(indices, np.uint64),
        "draw": np.array(draws, np.uint32),
    }
    with DeviceArrays(machine.memory, arrays) as device:
        machine.kernels.cuda_normal_launch(
            num_samples=num, num_elements=num_elements, stream=device.stream, **device.addresses
        )
        found = device.read("out")
    expected = normal_batch((num_elements,), arrays["seed"], arrays["sample_index"], arrays["draw"])
    return differing_elements(found, expected)


@pytest.mark.budget(40)
def test_many_normals_of_one_sample(machine):
    num = 100_000 if machine.is_software else MANY
    assert differing_normals(machine, [7], [2**33 + 5], [draw_number(999)], num) == 0


# Elements that are whole eights and not, fewer than a thread takes, many samples.
@pytest.mark.parametrize(
    ("num", "elements"), [(5, 35), (2, 1), (3, 3072), (300, 48), (1, 4099), (300, 8), (1, 100_003)]
)
def test_normals_of_many_samples(machine, num, elements):
    rng = np.random.default_rng(num)
    seeds, indices = (rng.integers(0, 2**64, num, dtype=np.uint64) for _ in range(2))
    draws = rng.integers(0, 2**28, num, dtype=np.uint32)
    assert differing_normals(machine, seeds, indices, draws, elements) == 0


def test_more_samples_than_a_grid_has_rows(machine):
    """65,535 blocks fit into its second dimension; the others lie in the third."""
    num = 65_541
    draws = np.full(num, draw_number(None), np.uint32)
    assert differing_normals(machine, np.full(num, 3), np.arange(num), draws, 1) == 0


@pytest.mark.parametrize("machine", ["software"], indirect=True)
def test_one_other_bit_is_seen(machine, monkeypatch):
    honest = machine.kernels.cuda_normal_launch

    def launch(*, out, stream, **arguments):
        honest(out=out, stream=stream, **arguments)
        machine.kernels.software_write(out + 4, stream)

    monkeypatch.setattr(machine.kernels, "cuda_normal_launch", launch, raising=False)
    assert differing_normals(machine, [7, 8], [1, 2], [3, 4], 1000) == 1


def test_equal_numbers_with_other_bits_differ_unless_they_are_no_numbers():
    zeros = np.array([0.0, 1.0, np.nan], np.float32)
    assert differing_elements(np.array([-0.0, 1.0, -np.nan], np.float32), zeros) == 1
    bfloat16 = np.array([0x7FC0, 0x7F80, 0x3F80], np.uint16)
    assert differing_elements(np.array([0x7FFF, 0x7F80, 0x3F81], np.uint16), bfloat16) == 1
