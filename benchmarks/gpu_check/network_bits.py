"""The U-Net in a chain: its loop, its graph and its launches agree bit for bit, and its predictions with the CPU's."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.gpu_check.cifar_network import checkpoint_folder, device_engine, has_diffusers
from benchmarks.gpu_check.context import StageContext
from benchmarks.gpu_check.device_arrays import differing_elements
from benchmarks.gpu_check.facts_stage import import_torch
from diffusion.samplers import make_table
from runtime.chain.device import DeviceChain
from runtime.chain.launchers import GRAPH_KINDS
from runtime.device.interface import DeviceEngine

BATCH_SIZE, NUM_STEPS = 2, 12
TIMESTEPS = (0, 30, 250, 600, 999)
# float32: the order of sums, and cuDNN's transforms for 3 × 3 kernels. bfloat16 keeps 8 bits of each factor, and 60
# layers add to that.
TOLERANCES = {"fp32": 1e-3, "bf16": 5e-2}


def run(context: StageContext) -> None:
    """The stage."""
    import_torch()
    lines = []
    for precision, tolerance in TOLERANCES.items():
        engine = device_engine(context, precision)
        context.record(f"engine_{precision}", engine.name)
        compare_launches(context, engine, precision)
        error = largest_error(engine, reference(context))
        context.check(f"{precision} predictions within {tolerance:g} of the CPU's", error <= tolerance, f"{error:.2e}")
        context.record(f"prediction_error_{precision}", error)
        lines.append(f"{engine.name}: predictions at most {error:.1e} from float32 on the CPU")
        context.record("lines", lines)


def compare_launches(context: StageContext, engine: DeviceEngine, precision: str) -> None:
    """The same chain with each way to launch it, and twice without a graph: whether the network repeats itself."""
    found: dict[str, np.ndarray] = {}
    for kind in ("none", *GRAPH_KINDS):
        chain = DeviceChain(engine, make_table(engine.process, num_steps=NUM_STEPS), BATCH_SIZE, graph=kind)
        try:
            if chain.graph != kind:
                context.check(f"{precision}: {kind}", False, "; ".join(chain.fall_backs))
                continue
            chain.begin([0] * BATCH_SIZE, range(BATCH_SIZE))
            chain.enqueue(NUM_STEPS)
            chain.wait()
            name = "first" if kind == "none" and "first" not in found else kind
            found[name] = chain.x
            context.check(f"{precision}: {kind} stays finite", bool(np.isfinite(found[name]).all()))
        finally:
            chain.close()
    repeats = not differing_elements(found["none"], found["first"])
    context.record(f"repeats_{precision}", repeats)
    for kind in ("step", "while"):
        if kind not in found:
            continue
        differing = differing_elements(found[kind], found["first"])
        context.record(f"differing_{kind}_{precision}", differing)
        if repeats:
            context.check(f"{precision}: {kind} as without a graph", not differing, f"{differing} elements differ")
    if not repeats:
        context.record(f"note_{precision}", "PyTorch's own kernels do not repeat their bits: nothing to compare with")


def largest_error(engine: Any, reference: Any) -> float:
    """‖out − reference‖ / ‖reference‖ of a device engine, called from the host; the largest over timesteps."""
    shape = (BATCH_SIZE, *engine.process.sample.chw)
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    prediction, t = np.full(shape, np.nan, np.float32), np.zeros(BATCH_SIZE, np.float32)
    call = engine.bind(x, t, prediction)
    errors = []
    for timestep in TIMESTEPS:
        t[:] = timestep
        prediction[:] = np.nan
        call()
        expected = reference(x, t)
        error = float(np.linalg.norm(prediction - expected) / np.linalg.norm(expected))
        errors.append(error if np.isfinite(error) else float("inf"))
    return max(errors)


def reference(context: StageContext) -> Any:
    """(x, t) → eps in NumPy, computed in float32 on the CPU by the network as it was before anything was folded."""
    import torch

    if has_diffusers():
        from diffusers import UNet2DModel

        unet = UNet2DModel.from_pretrained(checkpoint_folder(context.work_folder) / "unet", use_safetensors=True)
        network: Any = lambda x, t: unet(x, t).sample  # noqa: E731
    else:
        from benchmarks.gpu_check.plain_unet import random_plain_unet

        network = random_plain_unet()

    def predict(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(network(torch.from_numpy(x), torch.from_numpy(t)).numpy())

    return predict
