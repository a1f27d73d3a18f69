"""Exports that replace an older file or engine. What is slow is done once: the faults are in what comes after it."""

from __future__ import annotations

import contextlib
import hashlib
import pkgutil
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from runtime.formats.sidecar import engine_files
from tests.faults.case import Case, Contents, contents, in_set, same
from tests.faults.sampling_cases import write_networks


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
    return lambda folder, old, new: in_set(engine_files(folder / out), folder, old, new)


def _exporting(name: str, main: Callable[[list[str]], int], within: Any, check: Any, prepare: Any, *flags: str) -> Case:
    old, new = ([*flags[:-1], flags[-1].format(source)] for source in ("unet", "other"))
    return Case(name, main, old, new, (new,), check, same, prepare, within, in_parent=True)


def openvino() -> Case:
    from export.to_openvino import main

    within = _Kept(
        "export.source.read_source", "export.fold_time.fold_time", "export.to_openvino._convert",
        "export.to_openvino._verified", "export.to_openvino._check_device",
    )  # fmt: skip
    return _exporting(
        "openvino", main, within, _check_engine("unet.xml"), write_networks, "--onnx", "../inputs/{}.onnx"
    )


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


def trt() -> Case:
    from export.to_trt import main

    kept = _Kept("export.source.read_source", "export.to_trt._prepare", "export.plan_verification.verify_network")

    @contextlib.contextmanager
    def within(variant: str) -> Iterator[None]:
        with kept(variant), mock.patch("export.to_trt.BuildProcess", _Plan):
            yield

    flags = ("--flavor", "rtx", "--onnx", "../inputs/{}.onnx")
    return _exporting("trt", main, within, _check_engine("unet.plan"), write_networks, *flags)


def onnx() -> Case:
    from export.to_onnx import main
    from tests.checkpoints import save_tiny_checkpoint

    def prepare(inputs: Path) -> None:
        save_tiny_checkpoint(inputs / "unet")
        (inputs.parent / "work" / "unet.onnx").write_bytes(b"an older one")

    def check(folder: Path, old: Contents, new: Contents) -> None:
        assert contents(folder) in (old, new)

    within = _Kept("export.source.read_source", "export.onnx_check.verify_onnx")
    new = ("--checkpoint", "../inputs/unet")
    return Case("onnx", main, (), new, (new,), check, same, prepare, within, in_parent=True)


def converting() -> Case:
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

    return Case("convert", again, (), new, (new,), check, same, prepare, in_parent=True)
