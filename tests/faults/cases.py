"""Commands that replace an older result of their own, and what may be found wherever they are stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pkgutil
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from commands.file_sets import FileSet
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.formats.run_manifest import MANIFEST, RunManifest
from runtime.formats.sidecar import engine_files
from runtime.formats.train_record import checkpoint_files
from runtime.runs.shard_folder import find_shards
from runtime.trajectory import trajectory_files
from tests.gaussian import GaussianNetwork

Contents = Mapping[str, bytes]
_PROCESS = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 50))
_PARTIAL = "samples.partial.npy"


@dataclass(frozen=True)
class Case:
    """A command, run in a folder that holds the older result; its files are beside that folder, in `../inputs`.

    Attributes:
        name: of the case.
        main: of the command; returns the exit code.
        old, new: arguments for the older result and for the one that replaces it; no `old` where nothing is replaced.
        again: arguments for after the fault, each in its turn.
        check: raises AssertionError for what is neither the old result nor the new one; given the folder, and what it
            holds after `old` and after `new`, by `contents`.
        ends: raises AssertionError for what is not the new result.
        prepare: makes the inputs.
        within: a context in which both commands run.
        in_parent: whether they run once before the faults in the process that is forked, for what they import and what
            `within` keeps of them.
    """

    name: str
    main: Callable[[list[str]], int]
    old: Sequence[str]
    new: Sequence[str]
    again: Sequence[Sequence[str]]
    check: Callable[[Path, Contents, Contents], None]
    ends: Callable[[Path, Contents], None]
    prepare: Callable[[Path], None]
    within: Callable[[str], contextlib.AbstractContextManager[None]] = lambda variant: contextlib.nullcontext()
    in_parent: bool = False


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder that have no hidden part in their names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            found[str(name)] = path.read_bytes()
    return found


def hidden(folder: Path) -> list[str]:
    """Entries with hidden names that are not locks, which anybody may take."""
    found = [path.name for path in folder.rglob(".*") if path.name.startswith(".")]
    return [name for name in found if not name.endswith(".lock")]


def _same(folder: Path, new: Contents) -> None:
    assert contents(folder) == new
    assert not hidden(folder)


def _in_set(files: FileSet, folder: Path, old: Contents, new: Contents) -> None:
    """Readers of ours see all that is old or all that is new; others never see old entries beside new ones."""

    def below(where: Callable[[str], Path]) -> dict[str, bytes]:
        found = {}
        for entry in files.entries:
            path, name = where(entry), str((files.folder / entry).relative_to(folder))
            if path.is_dir():
                found |= {f"{name}/{inside}": content for inside, content in contents(path).items()}
            elif path.exists():
                found[name] = path.read_bytes()
        return found

    current, named = below(files.current), {str((files.folder / entry).relative_to(folder)) for entry in files.entries}
    old, new = (
        {name: content for name, content in result.items() if any(name == n or name.startswith(n + "/") for n in named)}
        for result in (old, new)
    )
    first = str((files.folder / files.entries[0]).relative_to(folder))
    visible = below(lambda entry: files.folder / entry)
    assert current in (old, new), sorted(current)
    assert not old or first in visible
    changed = {name for name in visible if name != first and old.get(name) != new.get(name)}
    assert all(visible[name] == old.get(name) for name in changed) or all(
        visible[name] == new.get(name) for name in changed
    ), sorted(changed)


# Sampling.


def _network(inputs: Path) -> None:
    GaussianNetwork(_PROCESS, 0.2, 0.5).save_onnx(inputs / "unet.onnx")
    GaussianNetwork(_PROCESS, -0.4, 0.3).save_onnx(inputs / "other.onnx")


def _sampling(name: str, *flags: str, check: Callable[[Path, Contents, Contents], None], resumes: bool = True) -> Case:
    from runtime.sample import main

    run = [
        "--engine",
        "../inputs/unet.onnx",
        "--num",
        "5",
        "--batch-size",
        "2",
        "--steps",
        "2",
        "--threads",
        "1",
        "--backend",
        "onnxruntime",
    ]
    old, new = ([*run, *flags, "--seed", seed] for seed in "01")
    again = ([*new, "--overwrite"], [*new, "--resume"])
    over = [*new, "--overwrite"]
    return Case(name, main, old, over, again if resumes else again[:1], check, _same, _network, in_parent=True)


def _check_run(folder: Path, old: Contents, new: Contents) -> None:
    """A run that is said to be done is there; results of two runs never lie beside each other."""
    out, found = folder / "samples", contents(folder)
    manifest = RunManifest.read(out)
    assert manifest is not None
    of_old = manifest.identity == json.loads(old[f"samples/{MANIFEST}"])["identity"]
    expected = old if of_old else new
    results = {
        name: content
        for name, content in found.items()
        if not name.endswith((MANIFEST, _PARTIAL)) and "traj" not in name
    }
    assert {name: expected.get(name) for name in results} == results
    if manifest.done == 5 and f"samples/{_PARTIAL}" not in found:
        assert results.keys() == {name for name in expected if not name.endswith(MANIFEST) and "traj" not in name}


def _check_trajectory(folder: Path, old: Contents, new: Contents) -> None:
    _check_run(folder, old, new)
    files = trajectory_files(folder / "samples")
    found = {f"samples/{name}": files.current(name) for name in files.entries}
    current = {name: path.read_bytes() for name, path in found.items() if path.exists()}
    old, new = ({name: result[name] for name in found} for result in (old, new))
    # The older one is removed file by file, as the user asked for.
    assert current == new or all(current[name] == old[name] for name in current)
    visible = {name: content for name, content in contents(folder).items() if name in found}
    assert any(all(content == result[name] for name, content in visible.items()) for result in (old, new))


def _check_shards(folder: Path, old: Contents, new: Contents) -> None:
    out = folder / "samples"
    manifest = RunManifest.read(out)
    assert manifest is not None
    of_old = manifest.identity == json.loads(old[f"samples/{MANIFEST}"])["identity"]
    expected = old if of_old else new
    run, done = find_shards(out)
    for shard in done:
        run.record(shard, verify=True)
        name = f"samples/{run.file(shard)}"
        found = {each: content for each, content in contents(folder).items() if each.startswith(name)}
        assert found == {each: content for each, content in expected.items() if each.startswith(name)}
    if not of_old:
        assert not any(content == old.get(name) for name, content in contents(folder).items() if "shard-" in name)


# Exports.


class _Kept:
    """What slow functions returned when they were called first: the faults are in what comes after them."""

    def __init__(self, *places: str) -> None:
        self._places, self._kept = places, dict[tuple[str, str], Any]()

    @contextlib.contextmanager
    def __call__(self, variant: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for place in self._places:
                stack.enter_context(mock.patch(place, self._keeping(variant, place)))
            yield

    def _keeping(self, variant: str, place: str) -> Callable[..., Any]:
        function = pkgutil.resolve_name(place)

        def kept(*arguments: Any, **options: Any) -> Any:
            if (variant, place) not in self._kept:
                self._kept[variant, place] = function(*arguments, **options)
            return self._kept[variant, place]

        return kept


def _check_engine(out: str) -> Callable[[Path, Contents, Contents], None]:
    return lambda folder, old, new: _in_set(engine_files(folder / out), folder, old, new)


def _exporting(name: str, main: Callable[[list[str]], int], within: Any, check: Any, prepare: Any, *flags: str) -> Case:
    old, new = ([*flags[:-1], flags[-1].format(source)] for source in ("unet", "other"))
    return Case(name, main, old, new, (new,), check, _same, prepare, within, in_parent=True)


def _openvino() -> Case:
    from export.to_openvino import main

    within = _Kept(
        "export.source.read_source", "export.fold_time.fold_time", "export.to_openvino._convert",
        "export.to_openvino._verified", "export.to_openvino._check_device",
    )  # fmt: skip
    return _exporting("openvino", main, within, _check_engine("unet.xml"), _network, "--onnx", "../inputs/{}.onnx")


class _Plan:
    """In place of the builder, whose process tests/export kills."""

    def __init__(self, flavor: object, network: bytes, *arguments: object, **options: object) -> None:
        self._network = network

    def __enter__(self) -> _Plan:
        return self

    def __exit__(self, *arguments: object) -> None:
        pass

    def wait(self) -> Any:
        from export.tensorrt_build import Built

        return Built(b"plan of " + hashlib.sha256(self._network).digest(), "1.0", (), None, None, None)

    def wait_for_check(self) -> None:
        pass


def _trt() -> Case:
    from export.to_trt import main

    kept = _Kept("export.source.read_source", "export.to_trt._prepare", "export.plan_verification.verify_network")

    @contextlib.contextmanager
    def within(variant: str) -> Iterator[None]:
        with kept(variant), mock.patch("export.to_trt.BuildProcess", _Plan):
            yield

    flags = ("--flavor", "rtx", "--onnx", "../inputs/{}.onnx")
    return _exporting("trt", main, within, _check_engine("unet.plan"), _network, *flags)


def _onnx() -> Case:
    from export.to_onnx import main
    from tests.checkpoints import save_tiny_checkpoint

    def prepare(inputs: Path) -> None:
        save_tiny_checkpoint(inputs / "unet")
        (inputs.parent / "work" / "unet.onnx").write_bytes(b"an older one")

    def check(folder: Path, old: Contents, new: Contents) -> None:
        assert contents(folder) in (old, new)

    within = _Kept("export.source.read_source", "export.onnx_check.verify_onnx")
    new = ("--checkpoint", "../inputs/unet")
    return Case("onnx", main, (), new, (new,), check, _same, prepare, within, in_parent=True)


def _convert() -> Case:
    from export.convert import main
    from tests.export.checkpoints.test_ho import FLAGS

    def prepare(inputs: Path) -> None:
        import torch

        from tests.export.checkpoints.ho_network import HoNetwork

        torch.save(HoNetwork().tensors, inputs / "model.ckpt")

    new = ["../inputs/model.ckpt", "--allow-pickle", *(f"--{name}={value}" for name, value in FLAGS.items())]

    def check(folder: Path, old: Contents, new: Contents) -> None:
        assert contents(folder) in (old, new)

    def again(arguments: list[str]) -> int:
        # What is there is never replaced: the user who has it removes it first.
        shutil.rmtree("model", ignore_errors=True)
        return main(arguments)

    return Case("convert", again, (), new, (new,), check, _same, prepare, in_parent=True)


# Training.


def _train() -> Case:
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


CASES: dict[str, Callable[[], Case]] = {
    **{
        name: lambda name=name: _sampling(name, "--format", name, check=_check_run)  # type: ignore[misc]
        for name in ("grid", "png", "npz", "npy")
    },
    "trajectory": lambda: _sampling("trajectory", "--trajectory", "3", check=_check_trajectory, resumes=False),
    **{
        f"shards-{name}": lambda name=name: _sampling(  # type: ignore[misc]
            f"shards-{name}", "--format", name, "--shard-size", "4", check=_check_shards
        )
        for name in ("npz", "png", "tar")
    },
    "onnx": _onnx,
    "convert": _convert,
    "train": _train,
    "trt": _trt,
    "openvino": _openvino,
}
