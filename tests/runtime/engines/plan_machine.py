"""What the tests of refusals share: a plan, the one line that refuses it, and modules that nobody may touch."""

import json
from types import ModuleType

import pytest

from diffusion.errors import InputError
from runtime.engines.opening import open_engine
from runtime.formats.digest import sealed_text
from runtime.formats.sidecar import sidecar_path
from tests.runtime.engines.plan_files import NETWORK, engine_fields, save_plan

MODULES = ("tensorrt", "tensorrt_lean", "tensorrt_rtx")


class Untouchable(ModuleType):
    """A module that is there, and that no test below may get as far as using."""

    def __getattr__(self, name):
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)  # what pytest itself asks every module for
        pytest.fail(f"{self.__name__}.{name} was touched")


def plan_of(folder, kind="tensorrt-rtx", **fields):
    fields = engine_fields(NETWORK, kind) | fields
    return save_plan(folder / "unet.plan", NETWORK, fields, b"\0plan" * 50, with_golden=False)


def refusal(path, kind=InputError):
    """The one line, without the folder."""
    with pytest.raises(kind) as caught:
        open_engine(path)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path.parent}/", "")


def change(path, **fields):
    sidecar = json.loads(sidecar_path(path).read_text())
    sidecar_path(path).write_text(sealed_text(sidecar | fields))
