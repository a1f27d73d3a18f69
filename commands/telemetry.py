"""Libraries that report their use to their makers: told not to, before any of them is imported."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import cast

# ONNX Runtime 1.29 and later writes an identifier into the home folder when it is imported and looks for a host some
# seconds later; its own call to stop comes after that. Versions before had the second name.
_SWITCHES = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED", "HF_HUB_DISABLE_TELEMETRY")
# OpenVINO looks for www.google-analytics.com as soon as it is imported, unless this module of its cannot be.
_MODULES = ("openvino_telemetry",)


def send_no_telemetry() -> None:
    """Switch it off, unless the environment says otherwise already or the library was imported before."""
    for name in _SWITCHES:
        os.environ.setdefault(name, "1")
    for name in _MODULES:
        # The import system's own way to say that there is no such module.
        sys.modules.setdefault(name, cast(ModuleType, None))
