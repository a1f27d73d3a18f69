"""What runs under compute-sanitizer: every kernel and a chain, small, with the compiled kernels alone.

python -m benchmarks.gpu_check.sanitized_work WORK_FOLDER launches|step|while|none
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.gpu_check.chain_bits import INDICES, SEEDS, a_process
from benchmarks.gpu_check.context import StageContext
from benchmarks.gpu_check.echo_engine import EchoEngine
from benchmarks.gpu_check.noise_bits import differing_normals
from benchmarks.gpu_check.sanitizer_stage import DONE
from benchmarks.gpu_check.step_bits import StepKind, differences, every_kind
from diffusion.process import SampleShape
from diffusion.samplers import make_table
from runtime.chain.device import DeviceChain
from runtime.chain.launchers import ROWS_PER_TURN

NUM_STEPS = 2 * ROWS_PER_TURN + 1
"""Two turns of the loop, and a row that is left over."""
# A whole number of eights in two blocks of 32 threads, and neither.
SHAPES = ((2, 2, 16, 16), (3, 1, 5, 7))


def run(context: StageContext, part: str) -> None:
    """Launch everything of one part; what is computed is compared too."""
    problems = _launches(context) if part == "launches" else _chains(context, part)
    if problems:
        raise RuntimeError("; ".join(problems[:5]))
    print(DONE, flush=True)


def _launches(context: StageContext) -> list[str]:
    problems = [
        f"{elements} normals differ"
        for elements in (64, 35, 4096)
        if differing_normals(context, [1, 2], [3, 4], [5, 6], elements)
    ]
    for kind in _few_kinds():
        for shape in SHAPES:
            problems += differences(context, kind, shape)
    return problems


def _few_kinds() -> list[StepKind]:
    """Every compiled kernel once or more: histories, a learned variance, the type; and addresses that are odd."""
    seen: dict[tuple[int, bool, str, bool], StepKind] = {}
    for kind in every_kind():
        seen.setdefault((kind.histories, kind.learned, kind.prediction_type, kind.aligned), kind)
    return list(seen.values())


def _chains(context: StageContext, graph: str) -> list[str]:
    problems = []
    for shape, io_type in ((SampleShape(2, 16, 16), "float16"), (SampleShape(1, 5, 7), "float32")):
        process = a_process(shape)
        engine = EchoEngine(process, io_type, "int64", context.memory, context.kernels)
        chain = DeviceChain(engine, make_table(process, num_steps=NUM_STEPS), len(SEEDS), graph=graph)
        try:
            if chain.graph != graph:
                problems.append("; ".join(chain.fall_backs))
            chain.begin(SEEDS, INDICES)
            chain.enqueue(chain.rows_left)
            chain.wait()
            if not chain.finite().all():
                problems.append(f"{io_type}: not finite")
        finally:
            chain.close()
    return problems


if __name__ == "__main__":
    run(StageContext(Path(sys.argv[1]), lambda findings: None), sys.argv[2])
