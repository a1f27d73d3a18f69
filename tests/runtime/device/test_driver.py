"""The driver's facts, asked of a library of our own that answers as libcuda does."""

import shutil
import subprocess

import pytest

from commands.errors import DeviceUnavailableError
from runtime.device import driver
from runtime.device.driver import DriverFacts, Gpu, driver_facts, require_gpu

CC = shutil.which("cc") or shutil.which("gcc")
# The signatures are those of cuda.h: CUdevice and CUresult are int.
SOURCE = """
#include <stddef.h>
#include <string.h>
static int ready = 0;
int cuInit(unsigned flags) { if (flags) return 1; ready = 1; return INIT; }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGetCount(int *count) { if (!ready) return 3; *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return ordinal < COUNT ? 0 : 101; }
int cuDeviceGetName(char *name, int size, int device) {
    if (size < 32) return 1;
    strcpy(name, device == 40 ? "NVIDIA H200" : "NVIDIA A10");
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)(device - 39) * 150754820096; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int of_h200[] = {9, 0, 132}, of_a10[] = {8, 6, 72};
    int place = attribute == 75 ? 0 : attribute == 76 ? 1 : attribute == 16 ? 2 : -1;
    if (place < 0) return 1;
    *value = (device == 40 ? of_h200 : of_a10)[place];
    return 0;
}
int cuGetErrorString(int code, const char **text) {
    *text = code == 804 ? "forward compatibility was attempted on non supported HW" : 0;
    return 0;
}
"""
H200 = Gpu(0, "NVIDIA H200", "9.0", 150754820096, 132)
A10 = Gpu(1, "NVIDIA A10", "8.6", 301509640192, 72)

pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def no_kernel_module(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_KERNEL_MODULE", tmp_path / "version")


def build(folder, init=0, count=2, source=SOURCE):
    (folder / "cuda.c").write_text(source)
    library = folder / f"libcuda_{init}_{count}.so"
    flags = ["-shared", "-fPIC", f"-DINIT={init}", f"-DCOUNT={count}"]
    subprocess.run([CC, *flags, "-o", str(library), str(folder / "cuda.c")], check=True)
    return str(library)


def test_what_the_driver_tells(tmp_path):
    facts = driver_facts(build(tmp_path))
    assert facts == DriverFacts("CUDA 13.2", "13.2", (H200, A10), "")
    assert require_gpu(facts, "unet.plan", "no way") == H200
    assert require_gpu(facts, "unet.plan", "no way", 1) == A10
    with pytest.raises(DeviceUnavailableError, match=r"^unet.plan: needs GPU 2, found 2, .*; no way$"):
        require_gpu(facts, "unet.plan", "no way", 2)


def test_the_version_of_the_kernel_module(tmp_path):
    (tmp_path / "version").write_text("580.95.05\n")
    assert driver_facts(build(tmp_path)).version == "580.95.05"


@pytest.mark.parametrize(
    ("init", "count", "missing"),
    [
        (100, 0, "the NVIDIA driver finds no GPU"),
        (0, 0, "the NVIDIA driver shows no GPU to this process (CUDA_VISIBLE_DEVICES?)"),
        (804, 1, "cuInit: error 804, forward compatibility was attempted on non supported HW)"),
        (34, 1, "the NVIDIA driver does not work (cuInit: error 34)"),
    ],
)
def test_why_there_is_none(tmp_path, init, count, missing):
    facts = driver_facts(build(tmp_path, init, count))
    assert facts.gpus == ()
    assert missing in facts.missing
    with pytest.raises(DeviceUnavailableError, match=r"^unet.plan: no NVIDIA GPU found: .*; go on$"):
        require_gpu(facts, "unet.plan", "go on")


def test_no_driver():
    facts = driver_facts("libcuda_of_nobody.so.1")
    assert facts == DriverFacts(None, None, (), "no NVIDIA driver (libcuda_of_nobody.so.1 is not found)")


def test_a_library_of_something_else(tmp_path):
    facts = driver_facts(build(tmp_path, source="int cuInit(unsigned flags) { return 0; }"))
    assert facts.missing == "the NVIDIA driver does not work (its library has no cuDriverGetVersion)"
