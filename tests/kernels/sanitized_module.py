"""A pytest plugin: `runtime._kernels` is the build that $DDPM_RT_SANITIZED names, and not the installed one."""

from __future__ import annotations

import importlib.util
import os
import sys


def pytest_configure() -> None:
    """Load it before any test asks for the module by its name."""
    path = os.environ["DDPM_RT_SANITIZED"]
    spec = importlib.util.spec_from_file_location("runtime._kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["runtime._kernels"] = module
    spec.loader.exec_module(module)
