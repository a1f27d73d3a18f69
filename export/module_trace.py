"""A PyTorch module under the network contract to an ONNX graph, by PyTorch's own exporter."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch

INPUTS, OUTPUT, BATCH_AXIS = ("x", "t"), "prediction", "N"
# A batch of 1 would be taken for a constant.
_TRACED_BATCH = 2


def trace_module(module: torch.nn.Module, chw: tuple[int, int, int], opset: int, debug: bool = False) -> Any:
    """Trace a module with inputs `x` [N, C, H, W] and `t` [N], output `prediction` and an open first axis.

    Args:
        module: takes x and t, both float32.
        chw: of x.
        opset: of the ONNX standard.
        debug: let PyTorch's exporter say on standard error what it does.

    Returns:
        An `onnx_ir.Model`, optimized by onnxscript, its weights shared with the module.
    """
    x, t = torch.zeros(_TRACED_BATCH, *chw), torch.zeros(_TRACED_BATCH)
    with _quiet(debug), torch.no_grad():
        program = torch.onnx.export(
            module,
            (x, t),
            dynamo=True,
            opset_version=opset,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=({0: BATCH_AXIS}, {0: BATCH_AXIS}),
            optimize=True,
            verbose=debug,
        )
    return program.model


@contextlib.contextmanager
def _quiet(debug: bool) -> Iterator[None]:
    """Keep the exporter off standard output, which is for results, and silence it unless asked to speak."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")  # of torch about its own parts
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
