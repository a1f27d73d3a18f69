"""HostStep uses its arrays in place: what it refuses, what it holds, and that a step allocates nothing."""

import ctypes
import gc
import platform
import sys
import tracemalloc
import weakref

import numpy as np
import pytest

from runtime import _kernels
from tests.kernels.random_steps import random_buffers, random_table

SHAPE = (2, 3, 4, 5)
OPTIONS = {"histories": 2, "learned": False, "h2_is_x_start": False, "clip": 1.0}


def make_step(**changes):
    coefficients, timesteps = random_table()
    arguments = {"coefficients": coefficients, "timesteps": timesteps} | OPTIONS | random_buffers(SHAPE) | changes
    return _kernels.HostStep(**arguments)


def read_only(array):
    array.flags.writeable = False
    return array


SHARED = np.zeros(SHAPE, np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros(SHAPE)}, "x is float64; expected float32"),
        ({"x": np.zeros(SHAPE, ">f4")}, "x is of format '>f'; expected float32"),
        ({"x": np.zeros((*SHAPE, 2), np.float32)[..., 0]}, "x is not C-contiguous; expected a C-contiguous array"),
        ({"x": np.zeros(SHAPE[::-1], np.float32).T}, "x is not C-contiguous"),
        ({"x": read_only(np.zeros(SHAPE, np.float32))}, "x is read-only; expected a writable array"),
        ({"x": np.zeros(481, np.uint8)[1:].view(np.float32).reshape(SHAPE)}, "x is not aligned"),
        ({"x": np.zeros(5, np.float32)}, r"x is of shape \[5\]; expected \[N, C, ...\]"),
        ({"prediction": np.zeros((2, 4, 4, 5), np.float32)}, r"prediction is of shape \[2, 4, 4, 5\]; expected "),
        ({"prediction": np.zeros(SHAPE, np.int16)}, "prediction is int16; expected float32 or float16 or uint16"),
        ({"learned": True}, r"prediction is of shape \[2, 3, 4, 5\]; expected \[2, 6, 4, 5\]$"),
        ({"h1": None}, "h1 is None; expected an array like x, the table keeps 2 histories"),
        ({"h2": np.zeros((2, 3, 4, 4), np.float32)}, r"h2 is of shape \[2, 3, 4, 4\]; expected \[2, 3, 4, 5\]"),
        ({"x_start": np.zeros(SHAPE, np.float16)}, "x_start is float16; expected float32"),
        ({"next_input": np.zeros((2, 3, 20), np.float32)}, r"next_input is of shape \[2, 3, 20\]"),
        ({"t": np.zeros(2, np.int32)}, "t is int32; expected float32 or int64"),
        ({"t": np.zeros(3, np.float32)}, r"t is of shape \[3\]; expected \[2\]"),
        ({"row": np.zeros(2, np.int64)}, "row is int64; expected int32"),
        ({"flag": np.zeros(2, np.uint32)}, "flag is uint32; expected int32"),
        ({"seed": np.zeros(2, np.int64)}, "seed is int64; expected uint64"),
        ({"sample_index": np.zeros((2, 1), np.uint64)}, r"sample_index is of shape \[2, 1\]; expected \[2\]"),
        ({"coefficients": np.zeros((4, 12), np.float32)}, r"coefficients is of shape \[4, 12\]; expected \[4, 13\]"),
        ({"timesteps": np.int32([3, 2, 1, -1])}, r"timesteps is -1 in row 3; expected 0..1048574"),
        ({"timesteps": np.int32([2**20 - 1, 2, 1, 0])}, "timesteps is 1048575 in row 0"),
        ({"histories": 3}, "histories is not 0, 1 or 2"),
        ({"clip": 0.0}, "clip is not a positive number"),
        ({"clip": np.nan}, "clip is not a positive number"),
        ({"isa": "neon"}, "isa is 'neon'; expected auto, baseline"),
        ({"threads": -1}, "threads is negative"),
        ({"x": SHARED, "h1": SHARED}, "x is sharing memory with h1; expected an array of its own"),
        ({"x": SHARED, "prediction": SHARED}, "x is sharing memory with prediction"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        make_step(**changes)


@pytest.mark.parametrize("value", [[1.0, 2.0], None, 3])
def test_refuses_what_is_no_array(value):
    with pytest.raises(TypeError, match="x is .*; expected an array of float32"):
        make_step(x=value)


def test_histories_that_the_table_does_not_keep_are_left_alone():
    step = make_step(histories=0, h1="anything", h2=None)
    step.run()


def test_read_only_inputs_are_enough_where_nothing_is_written():
    buffers = random_buffers(SHAPE)
    make_step(**buffers | {name: read_only(buffers[name]) for name in ("prediction", "seed", "sample_index")}).run()


def test_holds_its_arrays_and_lets_them_go():
    buffers = random_buffers(SHAPE)
    references = [weakref.ref(array) for array in buffers.values()]
    step = make_step(**buffers)
    del buffers
    gc.collect()
    assert all(reference() is not None for reference in references)
    step.run()
    del step
    gc.collect()
    assert all(reference() is None for reference in references)


def test_properties_say_what_is_used():
    assert make_step().isa == _kernels.isa_levels()[-1]
    assert make_step(isa="baseline", threads=3).threads == 3
    assert make_step(threads=0).threads >= 1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_allocates_nothing(heap_in_use, threads):
    buffers = random_buffers((8, 3, 96, 96), "float16")
    coefficients, timesteps = random_table(num_rows=400)
    coefficients[:] = 0.0
    step = _kernels.HostStep(coefficients, timesteps, **OPTIONS, **buffers, threads=threads)
    for _ in range(20):
        step.run()
    before = heap_in_use()
    for _ in range(200):
        step.run()
    assert heap_in_use() - before < 200 * 16  # malloc's least piece, once per step
    tracemalloc.start()
    for _ in range(100):
        step.run()
    python_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert python_bytes < 4096  # the loop's own counter
    assert (buffers["row"] == 320).all()


@pytest.fixture(scope="module")
def heap_in_use():
    """A function that says how many bytes malloc has given out, in the arena and mapped."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        pytest.skip("the heap is read with glibc's mallinfo2")
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    fields = {"_fields_": [(name, ctypes.c_size_t) for name in names.split(" ")]}
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = type("Mallinfo2", (ctypes.Structure,), fields)

    def in_use():
        info = mallinfo2()
        return info.uordblks + info.hblkhd

    in_use()  # its own first call leaves something behind
    return in_use
