"""Every published model at full size, from random weights: its parameters, and its export by the command line.

    python -m tests.export.checkpoints.published_models [--models improved-cifar10 ...] [--no-export] [--out FILE]

The network is built by the original project's own code (that of Ho et al. and DDIM by `ho_network`), saved as that
project saves it, compared with the network that we read, and exported with `--model NAME` alone. Every step is in a
process of its own, so that its peak memory can be told. A result that is there already is added to.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurement import measurement_facts
from commands.whole_files import write_whole_text
from diffusion.errors import InputError
from export.checkpoints.ho import HO
from export.checkpoints.openai import OPENAI
from export.checkpoints.registry import read_foreign
from tests.export.checkpoints.ho_network import HoNetwork
from tests.export.checkpoints.relative_errors import relative_errors
from tests.original_projects import original, randomize

PROG, RESULT = "tests.export.checkpoints.published_models", Path("benchmarks/results/published_models.json")
# Of Dhariwal & Nichol 2021, appendix; of improved-diffusion's README and file names; of Ho et al. 2020, appendix B.
PUBLISHED = {
    "guided-64": "296M",
    "guided-128": "422M",
    "guided-256": "554M",
    "guided-256-uncond": "554M",
    "guided-512": "559M",
    "guided-lsun": "552M",
    "guided-64-256": "312M",
    "guided-128-512": "309M",
    "improved-cifar10": "50M",
    "improved-imagenet64": "100M",
    "improved-imagenet64-cond": "270M",
    "improved-64-256": "280M",
    "improved-lsun": "100M",
    "ddpm-cifar10": "35.7M",
    "ddpm-lsun-bedroom": "114M",
    "ddpm-lsun-cat": "114M",
    "ddpm-lsun-church": "114M",
}
MODELS = {**OPENAI.models, **HO.models}
# A U-Net is the same at every size: compared on small images, exported at its own.
LARGEST_COMPARED = 32


def original_network(name: str) -> torch.nn.Module | HoNetwork:
    """The network as the original project's scripts make it of the published flags."""
    flags = MODELS[name]
    if name in HO.models:
        factors = tuple(int(factor) for factor in flags["ch_mult"].split(","))
        level = {32: 1, 64: 2, 256: 4}[flags["image_size"]]  # of 16x16, which attends
        return HoNetwork(flags["ch"], factors, flags["num_res_blocks"], (level,))
    return randomize(openai_network(name).to_empty(device="cpu"), 0)


def openai_network(name: str) -> torch.nn.Module:
    """The network of OpenAI's own code, without memory for its weights.

    The package of improved-diffusion has other multipliers in its script than the project: there the network is made
    of its class.
    """
    flags = OPENAI.models[name]
    size, enlarges = flags.get("image_size", flags.get("large_size")), "large_size" in flags
    if name.startswith("guided"):
        module = original("guided_diffusion.script_util")
        plain = {"num_heads": 4, "num_head_channels": -1, "num_heads_upsample": -1, "dropout": 0.0}
        arguments = {**plain, **flags, "use_checkpoint": False, "use_fp16": False}
        create = module.sr_create_model if enlarges else module.create_model
        names = create.__code__.co_varnames[: create.__code__.co_argcount]
        known = {key: value for key, value in arguments.items() if key in names and key != "channel_mult"}
        with torch.device("meta"):
            guided: torch.nn.Module = create(**known)
        return guided
    module = original("improved_diffusion_for_SMLM.improved_diffusion.unet")
    with torch.device("meta"):
        improved: torch.nn.Module = (module.SuperResModel if enlarges else module.UNetModel)(
            in_channels=3,
            model_channels=flags["num_channels"],
            out_channels=6,
            num_res_blocks=flags["num_res_blocks"],
            attention_resolutions=tuple(size // int(each) for each in flags["attention_resolutions"].split(",")),
            channel_mult=tuple(int(factor) for factor in flags["channel_mult"].split(",")),
            num_classes=1000 if flags["class_cond"] else None,
            num_heads=flags["num_heads"],
            use_scale_shift_norm=flags["use_scale_shift_norm"],
        )
    return improved


def compare(name: str, path: Path) -> dict[str, Any]:
    """Save the original network, read it, and compare the two."""
    network = original_network(name)
    tensors = network.tensors if isinstance(network, HoNetwork) else network.state_dict()
    torch.save(tensors, path)
    result: dict[str, Any] = {
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "published": PUBLISHED.get(name),
    }
    try:
        checkpoint = read_foreign(path, {"model": name}, allow_pickle=True)
    except InputError as error:
        return {**result, "refused": str(error).removeprefix(f"{path}: ")}
    assert checkpoint.num_parameters == result["parameters"]
    process, flags = checkpoint.process, MODELS[name]
    halvings = flags.get("channel_mult", flags.get("ch_mult")).count(",")
    side = min(process.sample.height, max(LARGEST_COMPARED, 2**halvings))
    total = process.schedule.num_train_timesteps
    scale = 1000 / total if flags.get("rescale_timesteps") else 1.0

    def conditions_for(x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Conditions that differ from sample to sample: made of x."""
        values = {}
        for condition in process.conditions:
            if condition.is_label:
                values[condition.name] = (1000 * x[:, 0, 0, 0]).long().abs() % condition.num_labels
            else:
                values[condition.name] = x[:, :, : side // 4, : side // 4]
        return values

    errors = relative_errors(
        lambda x, t: network(x, t, **conditions_for(x)),
        lambda x, t: checkpoint.network(x, t, *conditions_for(x).values()),
        (process.sample.channels, side, side),
        total,
        scale,
        num=3,
    )
    return {**result, "compared_at": side, "relative_error": max(errors)}


def export(name: str, path: Path, folder: Path) -> dict[str, Any]:
    """Export the checkpoint as a user would; what it took."""
    command = [sys.executable, "-m", "export.to_onnx", "--json", "--allow-pickle", "--model", name]
    command += ["--checkpoint", str(path), "--out", str(folder / "unet.onnx")]
    began = time.perf_counter()
    with (folder / "out").open("w+b") as out, (folder / "err").open("w+b") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    took = {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_gib": round(usage.ru_maxrss / 2**20, 2),
        "exit_code": process.returncode,
    }
    if process.returncode:
        return {**took, "message": (folder / "err").read_text().splitlines()[-1].replace(str(path), "FILE")}
    report = json.loads((folder / "out").read_text())
    (folder / "unet.onnx").unlink()
    verification = {name: value for name, value in report["verification"].items() if name != "samples"}
    return {**took, "size_bytes": report["size_bytes"], "verification": verification}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=f"python -m {PROG}")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--no-export", action="store_true", help="count and compare alone")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--compare", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compare:
        print(json.dumps(compare(args.compare[0], Path(args.compare[1]))))
        return
    report = json.loads(args.out.read_text()) if args.out.exists() else {"models": {}}
    for name in args.models:
        with tempfile.TemporaryDirectory(prefix="published-") as scratch:
            path = Path(scratch, "model.pt")
            command = [sys.executable, "-m", PROG, "--compare", name, str(path)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            earlier = report["models"].get(name, {})
            if "refused" not in found and not args.no_export:
                found["export"] = export(name, path, Path(scratch))
            elif "export" in earlier:
                found["export"] = earlier["export"]
        report = {**measurement_facts(PROG, sys.argv[1:]), "models": {**report["models"], name: found}}
        write_whole_text(args.out, json.dumps(report, indent=1) + "\n")
        print(name, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
