"""What runs under compute-sanitizer: every kernel and a chain, small, with the compiled kernels alone.

python -m tests.gpu.sanitized_work launches|step|while|none|planted
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.device.command import leave
from benchmarks.device.device_arrays import DeviceArrays
from diffusion.process import SampleShape
from diffusion.samplers import make_table
from runtime.chain.device import DeviceChain
from runtime.chain.launchers import ROWS_PER_TURN
from tests.gpu.chains import INDICES, SEEDS
from tests.gpu.echo_engine import EchoEngine
from tests.gpu.machines import open_machine
from tests.gpu.sanitizer import DONE
from tests.gpu.software_machine import a_process
from tests.gpu.step_kinds import differences, one_of_each_kernel, random_state
from tests.kernels.random_steps import random_buffers, random_table

NUM_STEPS = 2 * ROWS_PER_TURN + 1
"""Two turns of the loop, and a row that is left over."""
# A whole number of eights in two blocks of 32 threads, and neither.
SHAPES = ((2, 2, 16, 16), (3, 1, 5, 7))


def run(machine, part: str) -> None:
    """Launch everything of one part; what is computed is compared too."""
    if part == "planted":
        plant(machine)
        problems = []
    else:
        problems = _launches(machine) if part == "launches" else _chains(machine, part)
    if problems:
        raise RuntimeError("; ".join(problems[:5]))
    print(DONE, flush=True)


def plant(machine) -> None:
    """A loop on the device whose step writes x_start past the end of its buffer: a tool that works must say so."""
    kernels, memory = machine.kernels, machine.memory
    coefficients, timesteps = random_table()
    arrays = {name: array for name, array in random_buffers((1, 1, 16, 16)).items() if name not in ("h1", "h2")}
    arrays |= {"x_start": np.zeros(8, np.float32), "coefficients": coefficients, "timesteps": timesteps}
    arrays |= {"arrivals": np.zeros(1, np.uint32), "turns_left": np.zeros(1, np.uint32)}
    with DeviceArrays(memory, arrays) as device:
        addresses = dict(device.addresses)
        turns_left, _ = addresses.pop("turns_left"), addresses.pop("next_input")
        step = kernels.CudaStep(
            **addresses, num_rows=len(timesteps), histories=0, learned=False, h2_is_x_start=False, clip=1.0,
            num_samples=1, num_elements=256, prediction_elements=256, prediction_type="float32", t_is_int64=False,
        )  # fmt: skip
        kernels.cuda_begin_capture(device.stream)
        empty = kernels.cuda_end_capture(device.stream)
        graph = kernels.cuda_while_graph(empty, step, turns_left, 1)
        executable = kernels.cuda_graph_instantiate(graph)
        kernels.cuda_set_uint32(turns_left, 2, device.stream)
        kernels.cuda_graph_launch(executable, device.stream)
        memory.synchronize(device.stream)
        kernels.cuda_graph_executable_destroy(executable)
        for each in (graph, empty):
            kernels.cuda_graph_destroy(each)


def _launches(machine) -> list[str]:
    from tests.gpu.test_noise import differing_normals

    problems = [
        f"{elements} normals differ"
        for elements in (64, 35, 4096)
        if differing_normals(machine, [1, 2], [3, 4], [5, 6], elements)
    ]
    for kind in one_of_each_kernel():
        for shape in SHAPES:
            problems += differences(machine, kind, random_state(kind, shape))
    return problems


def _chains(machine, graph: str) -> list[str]:
    problems = []
    for shape, precision in ((SampleShape(2, 16, 16), "fp16"), (SampleShape(1, 5, 7), "fp32")):
        process = a_process(shape)
        engine = EchoEngine(process, precision, "int64", machine.memory, machine.kernels)
        chain = DeviceChain(engine, make_table(process, num_steps=NUM_STEPS), len(SEEDS), graph=graph)
        try:
            if chain.graph != graph:
                problems.append("; ".join(chain.fall_backs))
            chain.begin(SEEDS, INDICES)
            chain.enqueue(chain.rows_left)
            chain.wait()
            if not chain.finite().all():
                problems.append(f"{precision}: not finite")
        finally:
            chain.close()
    return problems


if __name__ == "__main__":
    run(open_machine(), sys.argv[1])
    leave(0)
