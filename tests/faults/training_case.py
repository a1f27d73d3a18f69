"""A training of a few steps that replaces another one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

from runtime.formats.train_record import checkpoint_files
from tests.faults.case import Case, Contents, contents, hidden


def training() -> Case:
    # Autograd starts threads, so the parent of the faults cannot train; it imports what they would each import.
    for place in ("sklearn.datasets", "train.training", "diffusers:DDPMPipeline", "diffusers:UNet2DModel"):
        pkgutil.resolve_name(place)
    from train.presets import PRESETS, NetworkConfig
    from train.run import run

    tiny = NetworkConfig(block_out_channels=(4,), attention_levels=(), layers_per_block=1, norm_num_groups=2)
    preset = replace(PRESETS["digits"], config=replace(PRESETS["digits"].config, network=tiny, num_train_timesteps=10))

    @contextlib.contextmanager
    def within(variant: str) -> Iterator[None]:
        with mock.patch.dict(PRESETS, digits=preset), mock.patch("train.evaluation.NUM_EVALUATIONS", 8):
            yield

    flags = [
        "--steps",
        "3",
        "--batch-size",
        "4",
        "--num-samples",
        "2",
        "--device",
        "cpu",
        "--save-seconds",
        "0",
        "--num-workers",
        "0",
    ]
    old, new = ([*flags, "--seed", seed] for seed in "01")

    def settled(result: Contents) -> dict[str, bytes]:
        """Without what a clock says."""
        return {
            name: hashlib.sha256(content).hexdigest().encode()
            if not name.endswith((".json", ".jsonl"))
            else _without_times(content)
            for name, content in result.items()
            if "/state/" not in name
        }

    def check(folder: Path, old: Contents, new: Contents) -> None:
        files = checkpoint_files(folder / "runs/digits")
        found = {}
        for entry in files.entries:
            path = files.current(entry)
            inside = contents(path) if path.is_dir() else {"": path.read_bytes()} if path.exists() else {}
            found |= {f"runs/digits/{entry}/{name}".rstrip("/"): content for name, content in inside.items()}
        assert settled(found) in (settled(old), settled(new))

    def ends(folder: Path, new: Contents) -> None:
        assert settled(contents(folder)) == settled(new)
        assert not hidden(folder)

    again = ([*new, "--overwrite"], [*new, "--resume"])
    return Case("train", run, old, [*new, "--overwrite"], again, check, ends, lambda inputs: None, within)


def _without_times(content: bytes) -> bytes:
    kept = []
    for line in content.decode().splitlines() if content[:1] == b"{" and b"\n{" in content else [content.decode()]:
        fields = json.loads(line)
        for name in ("seconds", "images_per_second", "command", "digest"):
            fields.pop(name, None)
        kept.append(json.dumps(fields, sort_keys=True))
    return "\n".join(kept).encode()
