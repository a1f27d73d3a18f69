"""The noise on the GPU has the bits of NumPy's."""

from __future__ import annotations

import numpy as np

from benchmarks.gpu_check.context import StageContext
from benchmarks.gpu_check.device_arrays import DeviceArrays, differing_elements
from diffusion.normal import draw_number, normal_batch

MANY = 10_000_000
# Of samples: elements that are whole eights and not, fewer than a thread takes, many samples.
SHAPES = ((3, 3072), (5, 35), (2, 1), (300, 48), (1, 100_003))


def run(context: StageContext, num_many: int = MANY) -> None:
    """The stage.

    Args:
        context: of the stage.
        num_many: normals of one sample.
    """
    differing = differing_normals(context, [7], [2**33 + 5], [draw_number(999)], num_many)
    context.record("normals", num_many)
    context.check(f"{num_many} normals of one sample", not differing, f"{differing} differ")
    rng = np.random.default_rng(0)
    for num, elements in SHAPES:
        seeds, indices = (rng.integers(0, 2**64, num, dtype=np.uint64) for _ in range(2))
        draws = rng.integers(0, 2**28, num, dtype=np.uint32)
        differing = differing_normals(context, seeds, indices, draws, elements)
        context.check(f"{num} samples of {elements} normals", not differing, f"{differing} differ")


def differing_normals(
    context: StageContext,
    seeds: list[int] | np.ndarray,
    indices: list[int] | np.ndarray,
    draws: list[int] | np.ndarray,
    num_elements: int,
) -> int:
    """Make N samples' normals on the device and with NumPy; how many differ in a bit."""
    num = len(seeds)
    arrays: dict[str, np.ndarray] = {
        "out": np.full((num, num_elements), np.nan, np.float32),
        "seed": np.array(seeds, np.uint64),
        "sample_index": np.array(indices, np.uint64),
        "draw": np.array(draws, np.uint32),
    }
    with DeviceArrays(context.memory, arrays) as device:
        context.kernels.cuda_normal_launch(
            num_samples=num, num_elements=num_elements, stream=device.stream, **device.addresses
        )
        found = device.read("out")
    expected = normal_batch((num_elements,), arrays["seed"], arrays["sample_index"], arrays["draw"])
    return differing_elements(found, expected)
