"""Machines with a GPU, for tests: plans, the modules that run them, and the host's memory for the GPU's."""

import sys
from types import ModuleType

import pytest

from runtime.engines import tensorrt_refusals
from runtime.engines.tensorrt_refusals import accept_plan
from tests.runtime.engines.host_memory import HostMemory
from tests.runtime.engines.plan_files import IO_TYPES, NETWORK, VERSIONS, WITH_A10, engine_fields, save_plan
from tests.runtime.engines.plan_machine import MODULES
from tests.runtime.engines.tensorrt_fake import CALLS, make_module


@pytest.fixture
def plan_cache(tmp_path, monkeypatch):
    """The project's cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    CALLS.clear()
    return tmp_path / "cache" / "ddpm-rt"


@pytest.fixture
def accepted(tmp_path, monkeypatch, plan_cache):
    """Make a plan and the module that runs it."""

    def make(
        module="tensorrt_rtx",
        precision="fp32",
        t_type="int64",
        broken=(),
        network=NETWORK,
        executed=False,
        plan=NETWORK,
        **fields,
    ):
        flavor = "tensorrt-rtx" if module == "tensorrt_rtx" else "tensorrt"
        engine = engine_fields(plan, flavor, precision, t_type) | fields
        engine["version_compatible"] = module == "tensorrt_lean"
        profiles = [tuple(profile.values()) for profile in engine["batch_profiles"]]
        path = save_plan(tmp_path / "unet.plan", plan, engine, executed=executed)
        made = make_module(module, VERSIONS[flavor], network, IO_TYPES[precision], t_type, profiles, broken)
        for name in MODULES:
            monkeypatch.setitem(sys.modules, name, made if name == module else None)
        monkeypatch.setattr(tensorrt_refusals, "driver_facts", lambda: WITH_A10)
        return accept_plan(path)

    return make


@pytest.fixture
def memory(monkeypatch):
    """The host's, which a path opened as an engine uses too."""
    memory, module = HostMemory(), ModuleType("runtime.device.memory")
    module.open_device_memory = lambda ordinal=0: memory
    monkeypatch.setitem(sys.modules, "runtime.device.memory", module)
    return memory


@pytest.fixture
def no_tensorrt(monkeypatch):
    """No module is installed: importing it raises ModuleNotFoundError."""
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def machine(monkeypatch, no_tensorrt):
    """Set what the driver says, and which modules are installed in which version."""

    def set_machine(facts=WITH_A10, **versions):
        monkeypatch.setattr(tensorrt_refusals, "driver_facts", lambda: facts)
        for name, version in versions.items():
            module = make_module(name, version, NETWORK, broken={"deserialize_cuda_engine", "Runtime"})
            monkeypatch.setitem(sys.modules, name, module)

    return set_machine


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def flavor(request):
    return request.param
