"""The chain on the host, which the chain on a device must equal bit for bit."""

import numpy as np

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.samplers import make_table
from runtime.chain.host import HostChain
from tests.runtime.device.host_network import HostNetwork

SHAPE = SampleShape(2, 3, 6)
SEEDS, INDICES = [5, 2**63 + 1, 7], [100, 2**64 - 1, 3]


def a_process(**changes) -> Process:
    schedule = NoiseSchedule.make("linear", 60)
    return Process(**({"sample": SHAPE, "schedule": schedule, "variance_type": "fixed_large"} | changes))


def table_of(process, sampler="ddpm", num_steps=7):
    return make_table(process, sampler, num_steps)


def host_run(process, table, x_init=None, num_rows=None, **options):
    chain = HostChain(HostNetwork(process, **options), table, len(SEEDS), with_x_start=True)
    chain.begin(SEEDS, INDICES, x_init)
    for _ in range(len(table) if num_rows is None else num_rows):
        chain.step()
    return chain


def assert_same(chain, host):
    for name in ("x", "x_start", "row"):
        np.testing.assert_array_equal(getattr(chain, name), getattr(host, name), err_msg=name)
    np.testing.assert_array_equal(chain.finite(), host.finite())
    assert chain.non_finite() == host.non_finite()
