"""`python -m runtime.sign`: sign an engine or a table, so that `--require-signature` accepts it elsewhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from commands.errors import VerificationError
from commands.program import Report, make_parser, run_program, say
from diffusion.errors import InputError
from diffusion.regular_files import file_facts
from runtime.engines.onnx_file import read_onnx
from runtime.formats.signature import check_signature, sign, signed_files

_EXAMPLES = """examples:
  openssl genpkey -algorithm ed25519 -out key.pem          a key that nobody else may read
  openssl pkey -in key.pem -pubout -out keys.pem           the public key; keys.pem may hold several
  python -m runtime.sign unet.plan --key key.pem           unet.plan.sig, of the plan, its sidecar and its reference
  python -m runtime.sample --engine unet.plan --require-signature keys.pem
"""
REQUIRE_HELP = (
    "run only an engine, and a table, that a key of this file has signed (Ed25519 public keys in PEM; see runtime.sign)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, sign or check, and return the exit code."""
    parser = make_parser("runtime.sign", "Sign all files of an engine, or a table, with an Ed25519 key.", _EXAMPLES)
    parser.add_argument("file", type=Path, metavar="FILE", help="unet.onnx, unet.xml, unet.plan or table.json")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--key", type=Path, metavar="PEM", help="private key to sign with, without a passphrase")
    way.add_argument("--check", type=Path, metavar="PEM", help="public keys; compare the signature that is there")
    return run_program(parser, _run, argv)


def _run(args: argparse.Namespace) -> Report:
    path: Path = args.file
    if args.check is not None:
        by = check_signature(path, args.check)
        return {"summary": f"{path}: signed by the key {by}", "file": str(path), "key": by}
    if path.suffix == ".onnx" and not read_onnx(path).is_whole:
        raise InputError(f"{path}: has weights in other files, which a signature does not cover; save it as one file")
    place = sign(path, args.key)
    return {"summary": f"{path}: signed: {place}", "file": str(path), "signature": str(place)}


def check_required(keys: Path | None, *paths: Path) -> Callable[[], None]:
    """Before an engine is opened: what `--require-signature` asks for, if it was given.

    Args:
        keys: the file of public keys; None where no signature is required.
        paths: of what is to be opened, an engine and tables.

    Returns:
        To be called once all of it is open: raises VerificationError if a file was written since it was checked.

    Raises:
        InputError, VerificationError: as `check_signature`.
    """
    if keys is None:
        return lambda: None
    before = _facts(paths)
    for path in paths:
        say(f"{path}: signed by the key {check_signature(path, keys)}")

    def check_unchanged() -> None:
        after = _facts(paths)
        for file in before | after:
            if before.get(file) != after.get(file):
                raise VerificationError(f"{file}: was written after its signature was checked; nothing was run with it")

    return check_unchanged


def _facts(paths: Sequence[Path]) -> dict[Path, tuple[int, ...] | None]:
    """Of all files that are signed; None for one that is not there."""
    facts: dict[Path, tuple[int, ...] | None] = {}
    for file in (file for path in paths for file in signed_files(path).values()):
        try:
            facts[file] = file_facts(file.stat())
        except (OSError, ValueError):
            facts[file] = None
    return facts


if __name__ == "__main__":
    sys.exit(main())
