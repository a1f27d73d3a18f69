"""Faults that are planted into the kernels, the graphs, the bindings and the chain, one at a time, and must be caught.

python -m tests.kernels.planted_faults            # all of them: about ten seconds each
python -m tests.kernels.planted_faults 3 17       # these
"""

from __future__ import annotations

from dataclasses import dataclass

TESTS = (
    "tests/gpu/test_step.py",
    "tests/runtime/chain/test_device.py",
    "tests/runtime/chain/test_device_launches.py",
    "tests/runtime/chain/test_device_slots.py",
    "tests/runtime/chain/test_device_pool.py",
    "tests/runtime/device/test_streams.py",
    "tests/gpu/test_noise.py",
    "tests/kernels/test_software_step.py",
)


@dataclass(frozen=True)
class Fault:
    """One wrong edit.

    Attributes:
        kind: what it stands for.
        file: from the root of the repository.
        right: what is there, exactly once.
        wrong: what is put in its place.
        first: the one of `TESTS` that is asked first; the others follow.
    """

    kind: str
    file: str
    right: str
    wrong: str
    first: str = TESTS[0]


_STEP, _ELEMENTS, _GRAPH = "kernels/step.cu", "kernels/cuda_elements.h", "kernels/cuda_graph.cpp"
_CHAIN, _LAUNCHERS, _BUFFERS = (
    "runtime/chain/device.py",
    "runtime/chain/launchers.py",
    "runtime/chain/device_buffers.py",
)
_CHAINS, _, _, _POOL, _STREAMS, *_ = TESTS[1:]

FAULTS = (
    Fault("index: blocks", _STEP, "kEight * (blockIdx.x * blockDim.x + threadIdx.x); }", "kEight * threadIdx.x; }"),
    Fault(
        "index: samples of a wide prediction",
        _STEP,
        "+ sample * job.prediction_elements + first",
        "+ sample * job.num_elements + first",
    ),
    Fault("index: samples beyond a grid's rows", _STEP, "(int64_t)blockIdx.z * kMaxGridY + blockIdx.y", "blockIdx.y"),
    Fault("index: too few rows of a grid", _STEP, "(samples + kMaxGridY - 1) / kMaxGridY)}", "samples / kMaxGridY)}"),
    Fault(
        "index: a counter of the noise used twice",
        _STEP,
        "normal_four(key, first / 4 + 1, &z[4], &z[5], &z[6], &z[7]);\n  }\n  float p",
        "normal_four(key, first / 4, &z[4], &z[5], &z[6], &z[7]);\n  }\n  float p",
    ),
    Fault(
        "index: an element too many",
        _STEP,
        "const int count = first < elements ? (int)min(elements - first, (uint32_t)kEight) : 0",
        "const int count = first < elements ? kEight : 0",
    ),
    Fault(
        "index: an element too many, read",
        _ELEMENTS,
        "if (i < count) values[i] = to_float(from[i]);",
        "if (i <= count) values[i] = to_float(from[i]);",
    ),
    Fault(
        "index: elements in another order",
        _ELEMENTS,
        "unpack_pair(words.z, T(), &to[4], &to[5]);",
        "unpack_pair(words.z, T(), &to[5], &to[4]);",
    ),
    Fault(
        "alignment: samples",
        _STEP,
        "aligned(job.num_elements % kEight == 0 && is_aligned(job.x)",
        "aligned(is_aligned(job.x)",
    ),
    Fault("alignment: a history", _STEP, "is_aligned(job.h1) && ", ""),
    Fault("alignment: the network's next input", _STEP, " && is_aligned(job.next_input)", ""),
    Fault("alignment: normals", _STEP, "num_elements % kEight == 0 && is_aligned(out);", "is_aligned(out);"),
    Fault("alignment: the end of a conversion", _STEP, "if (aligned && count == kEight) {", "if (aligned) {"),
    Fault(
        "arrivals: not back at zero",
        _STEP,
        "atomicInc(&arrivals[sample], gridDim.x - 1)",
        "atomicInc(&arrivals[sample], gridDim.x)",
    ),
    Fault("arrivals: of all samples together", _STEP, "atomicInc(&arrivals[sample]", "atomicInc(&arrivals[0]"),
    Fault(
        "arrivals: counted before the row is read everywhere",
        _STEP,
        "if (__syncthreads_or(row_number < 0 || row_number >= job.num_rows)) return;",
        "if (row_number < 0 || row_number >= job.num_rows) return;",
    ),
    Fault(
        "row: handed over by the first block",
        _STEP,
        "if (threadIdx.x != 0 || arrived != gridDim.x - 1) return;",
        "if (threadIdx.x != 0 || arrived != 0) return;",
    ),
    Fault(
        "row: handed over by every block",
        _STEP,
        "if (threadIdx.x != 0 || arrived != gridDim.x - 1) return;",
        "if (threadIdx.x != 0) return;",
    ),
    Fault(
        "row: the old row's timestep",
        _STEP,
        "static_cast<int64_t*>(job.t)[sample] = job.timesteps[next]",
        "static_cast<int64_t*>(job.t)[sample] = job.timesteps[row_number]",
    ),
    Fault("row: a timestep after the last", _STEP, "  if (next == job.num_rows) return;\n", ""),
    Fault(
        "row: past the end",
        _STEP,
        "row_number < 0 || row_number >= job.num_rows)) return;",
        "row_number < 0 || row_number > job.num_rows)) return;",
    ),
    Fault(
        "type: half of a timestep",
        _STEP,
        "static_cast<int64_t*>(job.t)[sample]",
        "static_cast<int32_t*>(job.t)[sample]",
    ),
    Fault(
        "type: rounded another way",
        _STEP,
        "return step_kernel<kHistories, kLearned, BFloat16>;",
        "return step_kernel<kHistories, kLearned, Float16>;",
    ),
    Fault(
        "flag: the row before",
        _STEP,
        "atomicCAS(&job.flag[sample], 0, row_number + 1)",
        "atomicCAS(&job.flag[sample], 0, row_number)",
    ),
    Fault("flag: the learned variance", _STEP, "return bad | any_not_finite(x);", "return any_not_finite(x);"),
    Fault(
        "history: the wrong one",
        _STEP,
        "if (kHistories == 2) store(h2, job.h2",
        "if (kHistories == 2) store(h1, job.h2",
    ),
    Fault("WHILE: the count stands still", _STEP, "*loop.turns_left - 1;", "*loop.turns_left;", _CHAINS),
    Fault("WHILE: a turn too few", _STEP, "turns_left != 0)", "turns_left > 1)", _CHAINS),
    Fault("WHILE: every sample counts", _STEP, "loop.turns_left && sample == 0 &&", "loop.turns_left &&", _CHAINS),
    Fault(
        "WHILE: a sample at its end does not count",
        _STEP,
        "if (loop.turns_left && sample == 0",
        "if (loop.turns_left && job.row[0] < job.num_rows && sample == 0",
        _CHAINS,
    ),
    Fault("WHILE: every row counts", _GRAPH, "row + 1 == num_rows ? DeviceLoop", "true ? DeviceLoop", _CHAINS),
    Fault("WHILE: the condition stays as it was left", _GRAPH, "cudaGraphCondAssignDefault)", "0)", _CHAINS),
    Fault("WHILE: no first turn", _GRAPH, "graph.get(), 1, cudaGraphCond", "graph.get(), 0, cudaGraphCond", _CHAINS),
    Fault(
        "order: a row beside the one before",
        _GRAPH,
        "(&call, graph, &previous, previous ? 1 : 0, network)",
        "(&call, graph, &previous, 0, network)",
        _CHAINS,
    ),
    Fault(
        "order: a step beside its network",
        _GRAPH,
        "add_cuda_step(graph, call, job",
        "add_cuda_step(graph, nullptr, job",
        _CHAINS,
    ),
    Fault(
        "lifetime: a graph destroyed by its maker",
        _GRAPH,
        "    graph_ = nullptr;\n    return graph;",
        "    return graph;",
        _CHAINS,
    ),
    Fault("lifetime: a graph that nobody destroys", _GRAPH, "    if (graph_) cudaGraphDestroy(graph_);\n", "", _CHAINS),
    Fault(
        "lifetime: a loop without its graph",
        _LAUNCHERS,
        "            kernels.cuda_graph_upload(",
        "            kernels.cuda_graph_destroy(graph)\n            kernels.cuda_graph_upload(",
        _CHAINS,
    ),
    Fault(
        "lifetime: freed while it runs",
        _CHAIN,
        "            undo.callback(self._memory.synchronize, self.stream)\n",
        "",
        _CHAINS,
    ),
    Fault(
        "missing sync: after a copy",
        "kernels/cuda_memory_bindings.cpp",
        '  check(cudaStreamSynchronize(stream_of(stream)), "cudaStreamSynchronize");\n}\n\nvoid copy_to_device',
        "}\n\nvoid copy_to_device",
    ),
    Fault(
        "missing sync: the rows are not waited for",
        _CHAIN,
        "        self._memory.synchronize(self.stream)\n        if self._rows_enqueued:",
        "        if self._rows_enqueued:",
        _POOL,
    ),
    Fault(
        "missing zeros",
        _BUFFERS,
        "        self._memory.zero(self._base, self.layout.size_bytes, stream)\n",
        "",
        _CHAINS,
    ),
    Fault(
        "missing zeros: histories of the sample before",
        _CHAIN,
        "self._memory.zero(address(name) + 4 *",
        "(lambda *_: None)(address(name) + 4 *",
        _CHAINS,
    ),
    Fault(
        "stale: what the host knows of the rows",
        _CHAIN,
        "        self._control_is_current = False\n\n    def wait",
        "\n    def wait",
        _CHAINS,
    ),
    Fault(
        "alignment: of the control block",
        _BUFFERS,
        "control_bytes += _rounded_up(size, 8)",
        "control_bytes += size",
        _CHAINS,
    ),
    Fault(
        "launcher: the turns are not said",
        _LAUNCHERS,
        "            self._kernels.cuda_set_uint32(self._turns_left, turns, self._stream)\n",
        "",
        _CHAINS,
    ),
    Fault(
        "launcher: rows that are left over",
        _LAUNCHERS,
        "turns, rest = divmod(num_rows, self._num_rows)",
        "turns, rest = num_rows // self._num_rows, 0",
        _CHAINS,
    ),
    Fault(
        "capture: not ended after a failure",
        "runtime/device/streams.py",
        "            handle = kernels.cuda_end_capture(stream)\n",
        "            handle = 0\n",
        _STREAMS,
    ),
    Fault(
        "capture: a graph that nobody destroys",
        "runtime/device/streams.py",
        "        weakref.finalize(self, import_kernels().cuda_graph_destroy, handle).atexit = False\n",
        "",
        _STREAMS,
    ),
)
"""All of them. None changes what is right: each must fail a test."""

QUICK = ("index: an element too many", "row: handed over by the first block", "WHILE: a turn too few",
         "lifetime: freed while it runs")  # fmt: skip
"""Kinds of those that are tried in every run of the tests."""
