"""The one network known exactly: for Gaussian data x_0 ~ N(μ, s²), the optimal prediction is linear in x_t.

With Var[x_t] = ᾱ s² + 1 − ᾱ, E[ε | x_t] = √(1−ᾱ)(x_t − √ᾱ μ) / Var[x_t]; everything else follows from it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from diffusion.prediction import from_x_start
from diffusion.process import METADATA_KEY, Process


class GaussianNetwork:
    """E[prediction | x_t] = slope[t]·x_t + offset[t] for the process's prediction type, in float64."""

    def __init__(self, process: Process, mean: float, std: float, log_variance: float = 0.3) -> None:
        self.process, self.mean, self.std, self.log_variance = process, mean, std, log_variance
        alpha_bar = process.schedule.alpha_bar
        variance = alpha_bar * std**2 + 1.0 - alpha_bar
        # E[x_0 | x_t] = μ + √ᾱ s² (x_t − √ᾱ μ) / Var[x_t]
        self.x_start_slope = np.sqrt(alpha_bar) * std**2 / variance
        self.x_start_offset = mean * (1.0 - alpha_bar) / variance
        zero, one = np.zeros_like(alpha_bar), np.ones_like(alpha_bar)
        kind = process.prediction_type
        self.offset = from_x_start(self.x_start_offset, kind, zero, alpha_bar)
        self.slope = from_x_start(self.x_start_offset + self.x_start_slope, kind, one, alpha_bar) - self.offset

    def __call__(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """x [N, C, H, W], t [N] → prediction [N, C or 2C, H, W], in the precision of x."""
        place = t.astype(np.int64)
        slope, offset = (table.astype(x.dtype)[place][:, None, None, None] for table in (self.slope, self.offset))
        prediction = slope * x + offset
        if self.process.variance_type == "learned_range":
            return np.concatenate([prediction, np.full_like(prediction, self.log_variance)], axis=1)
        return prediction

    def moments(self, timesteps: np.ndarray) -> tuple[float, float]:
        """Mean and variance of Algorithm 2's x_0 for x_T ~ N(0, 1), unclipped, from the papers' formulas alone.

        Nothing here goes through a table: the posterior of Ho et al. 2020, eqs. 6 and 7, with E[x_0 | x_t] put in.
        """
        mean, variance = 0.0, 1.0
        for gain, shift, noise_std in self.steps(timesteps):
            mean = gain * mean + shift
            variance = gain**2 * variance + noise_std**2
        return mean, variance

    def steps(self, timesteps: np.ndarray) -> list[tuple[float, float, float]]:
        """Algorithm 2 for this network: x' = gain·x + shift + noise_std·z, one tuple for each timestep."""
        steps = []
        for place, timestep in enumerate(timesteps):
            last = place == len(timesteps) - 1
            alpha_bar = self.process.schedule.alpha_bar[timestep]
            alpha_bar_prev = 1.0 if last else self.process.schedule.alpha_bar[timesteps[place + 1]]
            alpha = alpha_bar / alpha_bar_prev
            beta = 1 - alpha
            of_x_start = np.sqrt(alpha_bar_prev) * beta / (1 - alpha_bar)
            of_x_t = np.sqrt(alpha) * (1 - alpha_bar_prev) / (1 - alpha_bar)
            gain = of_x_t + of_x_start * self.x_start_slope[timestep]
            shift = of_x_start * self.x_start_offset[timestep]
            steps.append((gain, shift, 0.0 if last else np.sqrt(self._variance(beta, alpha_bar, alpha_bar_prev))))
        return steps

    def _variance(self, beta: float, alpha_bar: float, alpha_bar_prev: float) -> float:
        posterior_variance = beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
        if self.process.variance_type == "fixed_large":
            return beta
        if self.process.variance_type == "fixed_small":
            return posterior_variance
        f = (self.log_variance + 1) / 2  # Nichol & Dhariwal 2021, eq. 15
        return float(np.exp(f * np.log(beta) + (1 - f) * np.log(posterior_variance)))

    def save_onnx(self, path: Path, with_metadata: bool = True) -> Path:
        """The same network as an ONNX file by the contract: x, t (float32) → prediction, dynamic first axis."""
        channels, height, width = self.process.sample.chw
        tables = {"slope": self.slope, "offset": self.offset}
        weights = [numpy_helper.from_array(table.astype(np.float32), name) for name, table in tables.items()]
        weights.append(numpy_helper.from_array(np.array([-1, 1, 1, 1]), "per_sample"))
        nodes = [helper.make_node("Cast", ["t"], ["place"], to=TensorProto.INT64)]
        for name in tables:
            nodes.append(helper.make_node("Gather", [name, "place"], [f"{name}_flat"]))
            nodes.append(helper.make_node("Reshape", [f"{name}_flat", "per_sample"], [f"{name}_t"]))
        nodes.append(helper.make_node("Mul", ["x", "slope_t"], ["product"]))
        if self.process.variance_type == "learned_range":
            weights.append(numpy_helper.from_array(np.array(0.0, np.float32), "zero"))
            weights.append(numpy_helper.from_array(np.array(self.log_variance, np.float32), "w"))
            nodes += [
                helper.make_node("Add", ["product", "offset_t"], ["p"]),
                helper.make_node("Mul", ["x", "zero"], ["zeros"]),
                helper.make_node("Add", ["zeros", "w"], ["ws"]),
                helper.make_node("Concat", ["p", "ws"], ["prediction"], axis=1),
            ]
        else:
            nodes.append(helper.make_node("Add", ["product", "offset_t"], ["prediction"]))
        float32 = TensorProto.FLOAT
        graph = helper.make_graph(
            nodes,
            "gaussian",
            [
                helper.make_tensor_value_info("x", float32, ["N", channels, height, width]),
                helper.make_tensor_value_info("t", float32, ["N"]),
            ],
            [
                helper.make_tensor_value_info(
                    "prediction", float32, ["N", self.process.prediction_channels, height, width]
                )
            ],
            weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        if with_metadata:
            helper.set_model_props(model, {METADATA_KEY: json.dumps(self.process.to_json())})
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(path))
        return path
