"""Checkpoint to ONNX, and ONNX to engines. Nothing is published before it is checked.

From Python: `export_onnx`, `export_openvino` and `export_trt` take an `ExportRequest` and return an `Exported`.
"""

from typing import TYPE_CHECKING

from ddpm_rt.own_packages import import_own_packages

# Before they are looked for in the working directory, which `python -m` searches first; and `commands` before any other
# library, see commands/__init__.py.
import_own_packages("commands", "diffusion", "runtime")

if TYPE_CHECKING:
    from export.publication import Exported
    from export.request import ExportRequest
    from export.tensorrt_options import TensorRtOptions
    from export.to_onnx import export_onnx
    from export.to_openvino import export_openvino
    from export.to_trt import export_trt
else:
    _PLACES = {
        "ExportRequest": "request",
        "Exported": "publication",
        "TensorRtOptions": "tensorrt_options",
        "export_onnx": "to_onnx",
        "export_openvino": "to_openvino",
        "export_trt": "to_trt",
    }

    def __getattr__(name: str) -> object:
        """Imported when asked for: a command does not wait for the others'."""
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


__all__ = ["ExportRequest", "Exported", "TensorRtOptions", "export_onnx", "export_openvino", "export_trt"]
