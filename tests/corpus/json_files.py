"""JSON files that hold what no program of ours wrote: another text, or a field of another type, size or depth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.corpus.case import Case, Make, case
from tests.corpus.folder import edit_json, set_process_text
from tests.corpus.readers import READERS

_HUGE = 10**400
_DEEP = b"[" * 100_000 + b"]" * 100_000

TEXTS: dict[str, bytes] = {
    "deep lists": _DEEP,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "5000 digits": b'{"format": ' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"format": "\xff\xfe"}',
    "UTF-16": '{"format": 1}'.encode("utf-16"),
    "cut": b'{"format": 1, "a": [',
    "NaN": b'{"format": NaN}',
    "a list": b"[1, 2]",
    "null": b"null",
    "a text": b'"x"',
    "a number": b"1e999",
    "zeros": b"\0" * 64,
    "a field twice": b'{"format": 1, "format": 1}',
}

# A field of a file, what it is set to, and a word of the line.
_S, _P, _M = "unet.xml.json", "unet.plan.json", "ckpt/unet/config.json"
_C, _R, _G = "ckpt/scheduler/scheduler_config.json", "samples/run.json", "shards/shard-000000000-000000001.json"
FIELDS: tuple[tuple[str, str, Any, str], ...] = (
    (_S, "format", [], "format"), (_S, "format", _HUGE, "format"), (_S, "sha256", 5, "sha256"),
    (_S, "sha256", ["x"], "sha256"), (_S, "golden_sha256", None, "golden_sha256"), (_S, "process", [], "process"),
    (_S, "process.format", [], "format"), (_S, "process.sample.channels", _HUGE, "channels"),
    (_S, "process.sample.channels", 10**12, "channels"), (_S, "process.sample", [1], "sample"),
    (_S, "process.schedule", {}, "schedule|kind"), (_S, "process.schedule.num_train_timesteps", 10**15, "timesteps"),
    (_S, "process.schedule.kind", ["linear"], "kind"), (_S, "process.schedule.beta_end", _HUGE, "beta_end"),
    (_S, "process.clip_sample", {}, "clip_sample"), (_S, "process.conditions", [1], "conditions"),
    (_S, "process.conditions", {"a": 1}, "conditions"), (_S, "process.checkpoint_sha256", [1], "checkpoint_sha256"),
    (_S, "process.prediction_type", ["epsilon"], "prediction_type"), (_S, "process.kind", _HUGE, "process"),
    (_S, "engine", [], "engine"), (_S, "engine.flavor", [], "flavor"), (_S, "engine.precision", {}, "precision"),
    (_S, "engine.weights_sha256", [5], "weights_sha256"), (_S, "engine.inputs", [], "inputs"),
    (_S, "engine.inputs.x.shape", [[1]], "shape|inputs"), (_S, "engine.inputs.x.shape", [{}], "shape|inputs"),
    (_S, "engine.verified_on", {"processor": 1, "driver": [], "runtime": {}}, "verified_on"),
    (_S, "engine.time_path", [1], "time_path"), (_S, "verification", 1, "verification"),
    (_S, "verification.passed", [True], "passed"), (_S, "verification.chain", [1], "chain"),
    (_S, "verification.timesteps", [1], "timesteps"), (_S, "verification.tolerance", "x", "tolerance"),
    (_P, "engine.batch_profiles", [[]], "batch_profiles"), (_P, "engine.compute_capabilities", [{}], "capabilities"),
    (_P, "engine.batch_profiles", [{"min": 1, "opt": 2, "max": _HUGE}], "batch_profiles"),
    (_P, "engine.builder_version", 1, "builder_version"),
    (_P, "engine.built_on", {"gpu": [1], "driver": {}}, "built_on"), (_P, "engine.flavor", "x", "flavor"),
    (_P, "engine.kept_in_float32", [1, {}], "kept_in_float32"), (_P, "engine.builder_flags", [[]], "builder_flags"),
    (_M, "layers_per_block", 10**7, "layers_per_block"), (_M, "layers_per_block", [2], "layers_per_block"),
    (_M, "block_out_channels", [2**20] * 64, "config.json"), (_M, "block_out_channels", {}, "block_out_channels"),
    (_M, "block_out_channels", [10**6, 10**6], "memory|config.json"), (_M, "sample_size", 10**9, "sample_size"),
    (_M, "sample_size", [4, 4, 4], "sample_size"), (_M, "in_channels", 10**9, "in_channels"),
    (_M, "in_channels", True, "in_channels"), (_M, "down_block_types", [[]], "down_block_types"),
    (_M, "down_block_types", ["x"] * 2, "config.json"), (_M, "act_fn", {}, "act_fn"), (_M, "act_fn", "x", "x"),
    (_M, "norm_num_groups", 0, "norm_num_groups"), (_M, "norm_num_groups", 3, "config.json"),
    (_M, "attention_head_dim", 10**18, "attention_head_dim"), (_M, "num_class_embeds", 10**12, "num_class_embeds"),
    (_M, "num_class_embeds", [1], "num_class_embeds"), (_M, "time_embedding_dim", 2**20, "config.json"),
    (_M, "_class_name", ["UNet2DModel"], "_class_name"), (_M, "_use_default_values", 5, "_use_default_values"),
    (_M, "_use_default_values", [{}], "_use_default_values"), (_M, "dropout", _HUGE, "dropout"),
    (_M, "norm_eps", "1", "norm_eps"), (_M, "freq_shift", [0], "freq_shift"),
    (_C, "num_train_timesteps", 10**9, "num_train_timesteps"), (_C, "beta_start", [1], "beta_start"),
    (_C, "trained_betas", [[1]], "trained_betas"), (_C, "trained_betas", "x", "trained_betas"),
    (_C, "_class_name", {}, "scheduler"), (_C, "clip_sample", "yes", "clip_sample"),
    (_C, "clip_sample_range", _HUGE, "clip_sample_range"), (_C, "prediction_type", {}, "prediction_type"),
    (_C, "timestep_spacing", [], "timestep_spacing"), (_C, "steps_offset", 10**30, "steps_offset"),
    ("ckpt/model_index.json", "_class_name", [], "_class_name"), ("ckpt/model_index.json", "unet", {}, "unet"),
    ("ckpt/model_index.json", "scheduler", [[], []], "scheduler"),
    ("ckpt/model_index.json", "scheduler", ["diffusers", {}], "scheduler"),
    ("trained/train.json", "process", [], "process"), ("trained/train.json", "process.sample.levels", 1.5, "levels"),
    ("roll/mlp.json", "process", 1, "process"), ("roll/mlp.json", "format", "1", "format"),
    ("table.json", "rows", [[]], "row"), ("table.json", "rows", {}, "rows"), ("table.json", "clip", [], "clip"),
    ("table.json", "sampler", {}, "sampler"), ("table.json", "h2", [], "h2"),
    ("table.json", "histories", _HUGE, "histories"),
    ("table.json", "notes", [["x"]], "notes"), ("table.json", "format", [1], "format"),
    ("table.json", "rows", [{"t": _HUGE}], "row 0"), ("table.json", "rows", [{"t": 1, "u": _HUGE}], "row 0"),
    (_R, "done", "x", "done"), (_R, "done", _HUGE, "done"), (_R, "done", -1, "done"), (_R, "identity", [], "identity"),
    (_R, "identity.num", [3], "num"), (_R, "identity.num", "3", "num"), (_R, "non_finite", [[]], "non_finite"),
    (_R, "non_finite", {}, "non_finite"), (_R, "files", ["../../x"], "files"), (_R, "files", [[]], "files"),
    (_R, "non_finite", [{"sample_index": _HUGE, "row": 0, "timestep": 0}], "non_finite"),
    (_G, "first", _HUGE, "first"), (_G, "num", 0, "num"), (_G, "num_bytes", -1, "num_bytes"),
    (_G, "file", "../x", "file"), (_G, "sha256", "x", "sha256"), (_G, "identity_sha256", [], "identity_sha256"),
    (_G, "non_finite", "x", "non_finite"),
    ("shards/run.json", "identity.num", 10**18, "num"), ("shards/run.json", "identity.shard_size", [], "shard_size"),
    ("shards/run.json", "identity.shard_size", 0, "shard_size"), ("shards/run.json", "identity.format", [], "format"),
    ("shards/run.json", "identity.num", 10**12, "num|shards"), ("shards/run.json", "identity.start", -1, "start"),
    ("shards/run.json", "identity.start", [], "start"),
)  # fmt: skip
# Of a file with two readers, the one that goes further is taken for its fields.
_LINES = {reader.file: reader.line for reader in reversed(READERS)} | {
    "shards/run.json": "runtime.gather shards --out new.npz",
    _G: "runtime.gather shards --out new.npz",
}
_BETAS: dict[str, Any] = {
    "text": "x", "texts": ["x"] * 12, "nested": [[0.1]], "huge": [_HUGE] * 12, "empty": [], "object": {}, "null": None,
    "true": [True] * 12, "negative": [-0.1] * 12,
}  # fmt: skip


def cases() -> Iterator[Case]:
    """Every JSON file with every text, and with single fields changed."""
    for reader in READERS:
        if reader.kind == "json":
            for kind, text in TEXTS.items():
                # A list is what betas are; diffusers writes infinities, and takes what lacks for its defaults.
                if (_base(reader.file), kind) not in (("betas.json", "a list"), ("scheduler_config.json", "NaN")):
                    yield case(
                        f"JSON {kind}: {reader.name}", reader.line, [_base(reader.file)], _text(reader.file, text)
                    )
    for reader in READERS:
        if reader.kind == "onnx":
            for kind, text in TEXTS.items():
                if kind in ("deep lists", "5000 digits", "not UTF-8", "null") or "sample " in reader.line:
                    make = set_process_text(reader.file, text)
                    yield case(f"metadata {kind}: {reader.name}", reader.line, [reader.file], make)
    for file, field, value, word in FIELDS:
        shown = str(value) if value != _HUGE else "1e400"
        yield case(f"field {file} {field} {shown[:40]}", _LINES[file], [_base(file), word], _field(file, field, value))
    for kind, value in _BETAS.items():
        yield case(f"betas {kind}", _LINES["betas.json"], ["betas"], _text("betas.json", json.dumps(value).encode()))


def _base(file: str) -> str:
    return file.rpartition("/")[2]


def _text(file: str, text: bytes) -> Make:
    def make(folder: Path) -> None:
        (folder / file).write_bytes(text)

    return make


def _field(file: str, field: str, value: Any) -> Make:
    *way, last = field.split(".")

    def change(fields: dict[str, Any]) -> None:
        for name in way:
            fields = fields[name]
        fields[last] = value

    return edit_json(file, change)
