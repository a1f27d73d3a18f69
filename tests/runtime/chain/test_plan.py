"""How many samples fit into the memory."""

import numpy as np
import pytest

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.samplers import make_table
from runtime.chain.host import HostChain
from runtime.chain.plan import host_bytes_per_sample
from runtime.engines.interface import Engine


class Still(Engine):
    """An engine that predicts nothing."""

    name, sha256, precision = "still", "0", "fp32"

    def __init__(self, process: Process) -> None:
        self.process = process

    def batch_range(self) -> tuple[int, int | None]:
        return 1, None

    def _bind(self, x, t, prediction):
        return lambda: None


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "learned_range"])
def test_the_arrays_of_a_chain_are_counted(sampler, variance_type):
    process = Process(SampleShape(3, 16, 8), NoiseSchedule.make("linear"), variance_type=variance_type)
    table = make_table(process, sampler, 10)
    chain = HostChain(Still(process), table, 5, with_x_start=True)
    finished = np.empty_like(chain.x)
    assert host_bytes_per_sample(process, table) * 5 == chain.buffer_bytes + finished.nbytes
