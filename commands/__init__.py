"""What every command line of the project shares: exit codes, `--json`, `--debug`, progress, whole files.

Everything of ours that imports an engine imports this first, so this is where libraries that report their use to their
makers are told not to. Nothing else of ours may be imported here: the working directory may hold packages of its names.
"""

import os
import sys
from types import ModuleType
from typing import cast

# ONNX Runtime 1.29 and later writes an identifier into the home folder when it is imported and looks for a host some
# seconds later; its own call to stop comes after that. Versions before had the second name.
_SWITCHES = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED", "HF_HUB_DISABLE_TELEMETRY")
# OpenVINO looks for www.google-analytics.com as soon as it is imported, unless this module of its cannot be.
_MODULES = ("openvino_telemetry",)

for _name in _SWITCHES:
    os.environ.setdefault(_name, "1")
for _name in _MODULES:
    # The import system's own way to say that there is no such module; one that was imported before stays.
    sys.modules.setdefault(_name, cast(ModuleType, None))
