"""`python -m benchmarks.compare`: our chain beside its peers, same weights, same noise, same steps.

Every peer runs in a process of its own, one at a time and by turns, so that what disturbs the machine disturbs all of
them. Times are medians over the rounds; ratios are taken pair by pair within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare.peers import PEERS, REFERENCE
from benchmarks.flags import positive, report_file
from benchmarks.measurement import cpu_count, measurement_facts, write_report
from commands.errors import VerificationError, require_module
from commands.program import Report, make_parser, run_program, say
from commands.whole_files import whole_file
from ddpm_rt.own_packages import command_of_own_process
from diffusion.errors import InputError
from runtime.engines.checkpoint_folder import read_checkpoint_folder

OURS, THEIRS = "#1f6feb", "#9aa4af"
# What fits above one panel: a longer title would be cut off.
_LETTERS_PER_PANEL = 70
PROG = "benchmarks.compare"


class Worker:
    """A peer in its own process."""

    def __init__(self, name: str, folder: Path, batch_size: int, num_steps: int, threads: int) -> None:
        self.name = name
        settings = (str(batch_size), str(num_steps), str(threads))
        words = command_of_own_process("benchmarks.compare.peers", name, str(folder), *settings)
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands, self._answers = self._process.stdin, self._process.stdout
        started = self._answer()
        self.first_step_seconds = float(started["first_step_seconds"])
        self.timesteps: list[int] = started["timesteps"]

    def tell(self, command: str) -> dict[str, Any]:
        """Have the peer do something; return how long it took and its peak memory."""
        self._commands.write(command + "\n")
        self._commands.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            self.stop()
            code = self._process.returncode
            raise InputError(f"{self.name}: the peer ended with exit code {code}; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End the process: its standard input ends, so it does."""
        self._commands.close()
        self._answers.close()
        self._process.wait(timeout=60)


def compare(
    folder: Path, names: Sequence[str], batch_size: int, num_steps: int, rounds: int, threads: int
) -> list[dict[str, Any]]:
    """One entry per peer for one batch size; the first is the reference of the ratios and the errors.

    Raises:
        InputError: a peer that ends.
        VerificationError: peers that do not visit the same timesteps, whose times and images cannot be compared.
    """
    with contextlib.ExitStack() as stack:
        workers = []
        for name in names:
            say(f"starting {name} at batch {batch_size}")
            workers.append(Worker(name, folder, batch_size, num_steps, threads))
            stack.callback(workers[-1].stop)
        first = workers[0]
        for worker in workers:
            if worker.timesteps != first.timesteps:
                raise VerificationError(
                    f"{worker.name} visits the timesteps {_shown(worker.timesteps)}, but {first.name} "
                    f"{_shown(first.timesteps)}; expected the same of all peers (a bug: please report it)"
                )
        return _measure(workers, folder, batch_size, num_steps, rounds)


def _measure(workers: list[Worker], folder: Path, batch_size: int, num_steps: int, rounds: int) -> list[dict[str, Any]]:
    names = [worker.name for worker in workers]
    images: dict[str, np.ndarray] = {}
    chain: dict[str, list[float]] = {name: [] for name in names}
    network: dict[str, list[float]] = {name: [] for name in names}
    peak: dict[str, float] = {}
    for worker in workers:  # also the warm-up
        file = folder / "images.npy"
        worker.tell(f"images {file}")
        images[worker.name] = np.load(file)
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for worker in workers:
            answer = worker.tell("chain")
            chain[worker.name].append(answer["seconds"])
            network[worker.name].append(worker.tell("network")["seconds"])
            peak[worker.name] = answer["peak_bytes"]
    entries = []
    reference = images[names[0]]
    for worker in workers:
        name = worker.name
        seconds = statistics.median(chain[name])
        pairs = list(zip(chain[names[0]], chain[name], strict=True))
        entries.append(
            {
                "peer": name,
                "batch_size": batch_size,
                "ms_per_step": 1e3 * seconds / num_steps,
                "ms_per_step_min": 1e3 * min(chain[name]) / num_steps,
                "ms_per_step_max": 1e3 * max(chain[name]) / num_steps,
                "images_per_second": batch_size / seconds,
                "speedup": statistics.median(theirs / own for theirs, own in pairs),
                "chain_over_network": statistics.median(c / n for c, n in zip(chain[name], network[name], strict=True)),
                "first_step_seconds": worker.first_step_seconds,
                "peak_gib": peak[name] / 2**30,
                "relative_error": float(np.linalg.norm(images[name] - reference) / np.linalg.norm(reference)),
            }
        )
    return entries


def _shown(timesteps: list[int]) -> str:
    return ", ".join(map(str, timesteps[:4])) + (f", … {timesteps[-1]}" if len(timesteps) > 4 else "")


def prepare(folder: Path, checkpoint: Path | None, num_steps: int, allow_pickle: bool = False) -> str:
    """Fill the working folder with the checkpoint and every engine that can be made here; return the network's name.

    Raises:
        InputError: a checkpoint that cannot be read, that diffusers does not sample from, or that has fewer timesteps.
    """
    from export import ExportRequest, export_onnx

    if checkpoint is None:
        from benchmarks.networks import save_cifar10_checkpoint

        save_cifar10_checkpoint(folder / "checkpoint")
        name = "ddpm-cifar10-32 (35.7 M parameters), random weights"
    else:
        process = read_checkpoint_folder(checkpoint).process
        if process.prediction_type == "score":
            raise InputError(f"{checkpoint}: predicts the score, which diffusers does not sample from; choose another")
        total = process.schedule.num_train_timesteps
        if num_steps > total:
            raise InputError(f"--steps is {num_steps}, expected at most {total}, the timesteps of {checkpoint}")
        _copy_for_peers(checkpoint, folder / "checkpoint", allow_pickle)
        name = str(checkpoint)
    export_onnx(ExportRequest(folder / "unet.onnx", folder / "checkpoint"))
    _export_openvino(folder)
    return name


def _copy_for_peers(checkpoint: Path, copy: Path, allow_pickle: bool) -> None:
    """A pipeline that diffusers loads as it is: no pickle, no variant, no scheduler that samples by another method."""
    from diffusers import DDPMPipeline, DDPMScheduler

    from diffusion.diffusers_config import process_to_diffusers
    from runtime.engines.torch_checkpoint import load_checkpoint

    found = load_checkpoint(checkpoint, allow_pickle)
    DDPMPipeline(found.unet, DDPMScheduler(**process_to_diffusers(found.process))).save_pretrained(copy)


def _export_openvino(folder: Path) -> None:
    from commands.errors import DeviceUnavailableError
    from export import ExportRequest, export_openvino

    export_openvino(ExportRequest(folder / "unet.xml", folder / "checkpoint"))
    try:
        export_openvino(ExportRequest(folder / "unet_bf16.xml", folder / "checkpoint", precision="bf16"))
    except DeviceUnavailableError as error:
        say(f"no bf16 engine: {error}")


def benchmark(args: argparse.Namespace, argv: Sequence[str] | None) -> Report:
    """Run the command; return its report."""
    if args.out is not None:
        require_module("matplotlib")
    for name in args.peers or ():
        if name not in PEERS:
            raise InputError(f"peer is {name!r}, expected one of {', '.join(PEERS)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        network = prepare(folder, args.checkpoint, args.steps, args.allow_pickle)
        there = [name for name, (file, _) in PEERS.items() if (folder / file).exists()]
        # The reference first, whatever else is chosen.
        names = [REFERENCE, *(name for name in there if name != REFERENCE and (not args.peers or name in args.peers))]
        results = [
            entry
            for batch_size in args.batch_sizes
            for entry in compare(folder, names, batch_size, args.steps, args.rounds, args.threads)
        ]
    report: Report = {
        **measurement_facts(PROG, argv),
        "network": network,
        "steps": args.steps,
        "rounds": args.rounds,
        "threads": args.threads,
        "results": results,
    }
    lines = [f"{network}, {args.steps} steps, {args.threads} threads, medians of {args.rounds} rounds by turns"]
    lines.append(
        f"{'':31} {'batch':>5} {'ms/step':>9} {'images/s':>9} {'x diffusers':>11} {'chain/net':>9} "
        f"{'start s':>8} {'GiB':>6} {'error':>8}"
    )
    lines += [_table_row(entry) for entry in results]
    if args.out is not None:
        lines += write_report(report, args.out)
        picture = args.out.with_suffix(".png")
        draw_bars(results, f"{network}: speed-up over diffusers, {args.steps} steps", picture)
        lines.append(str(picture))
    return report | {"summary": "\n".join(lines)}


def _table_row(entry: dict[str, Any]) -> str:
    return (
        f"{entry['peer']:31} {entry['batch_size']:5d} {entry['ms_per_step']:9.2f} {entry['images_per_second']:9.3f} "
        f"{entry['speedup']:11.2f} {entry['chain_over_network']:9.4f} {entry['first_step_seconds']:8.2f} "
        f"{entry['peak_gib']:6.2f} {entry['relative_error']:8.1e}"
    )


def draw_bars(results: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw `speedup` of every entry, ours in color, and save the picture whole."""
    from matplotlib.figure import Figure

    batch_sizes = sorted({entry["batch_size"] for entry in results})
    figure = Figure(figsize=(5.5 * len(batch_sizes), 3.6), layout="constrained")
    panels = figure.subplots(1, len(batch_sizes), squeeze=False, sharey=True)
    for panel, batch_size in zip(panels[0], batch_sizes, strict=True):
        entries = [entry for entry in results if entry["batch_size"] == batch_size][::-1]
        colors = [OURS if entry["peer"].startswith("ours") else THEIRS for entry in entries]
        bars = panel.barh([entry["peer"] for entry in entries], [entry["speedup"] for entry in entries], color=colors)
        panel.bar_label(bars, [f"{entry['speedup']:.2f}" for entry in entries], padding=3)
        panel.set_title(f"batch {batch_size}")
        panel.margins(x=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(textwrap.fill(title, _LETTERS_PER_PANEL * len(batch_sizes)), fontsize=10)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(PROG, "Our chain beside diffusers and others: same weights, same noise, same steps.")
    parser.add_argument("--checkpoint", type=Path, help="default: ddpm-cifar10-32 with random weights")
    parser.add_argument("--allow-pickle", action="store_true", help="read a checkpoint's weights from a pickle")
    parser.add_argument("--batch-sizes", type=positive, nargs="+", default=[1, 8], metavar="N", help="default: 1 8")
    parser.add_argument("--steps", type=positive, default=50, help="of every chain (default: 50)")
    parser.add_argument("--rounds", type=positive, default=3, help="measurements of each peer (default: 3)")
    parser.add_argument("--threads", type=positive, default=cpu_count(), help="default: every CPU of this process")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help=f"of: {', '.join(PEERS)} (default: all there are)")
    parser.add_argument("--out", type=report_file, help="write the report to this JSON file, and a chart beside it")
    return run_program(parser, lambda args: benchmark(args, argv), argv)


if __name__ == "__main__":
    raise SystemExit(main())
