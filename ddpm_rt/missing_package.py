"""A Python package that a command needs and that is not installed: which extra of ours brings it."""

from __future__ import annotations

import re
from importlib import metadata

from ddpm_rt.own_packages import PACKAGES

# Where the module is not called as its distribution.
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "modelopt": "nvidia-modelopt",
    "onnx_graphsurgeon": "onnx-graphsurgeon",
    "sklearn": "scikit-learn",
}
# Of the extras that bring a package, the first of these is named.
_PREFERRED = ("cpu", "train", "export", "rtx", "gpu")


def describe_missing_package(error: ModuleNotFoundError, program: str) -> str | None:
    """One line: the package, and the command that installs it. None for a module of ours, whose absence is a bug.

    Args:
        error: of the import.
        program: the command's name, which tells which of several extras is meant.
    """
    module = (error.name or "").partition(".")[0]
    if not module or module in (*PACKAGES, "ddpm_rt"):
        return None
    distribution = _DISTRIBUTIONS.get(module, module.replace("_", "-"))
    found = _extras_with(distribution)
    preferred = [*(extra for extra in _PREFERRED if extra in program), *_PREFERRED, *found]
    install = f'"ddpm-rt[{min(found, key=preferred.index)}]"' if found else distribution
    return f"needs the Python module {module}, which is not installed; pip install {install}"


def _extras_with(distribution: str) -> list[str]:
    try:
        requirements = metadata.requires("ddpm-rt") or []
    except metadata.PackageNotFoundError:  # run from a checkout
        return []
    found = (re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line) for line in requirements)
    return [match[2] for match in found if match and match[1].replace("_", "-").lower() == distribution.lower()]
