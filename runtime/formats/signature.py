"""`unet.plan.sig` beside an engine or a table: who vouches for its files, by an Ed25519 signature (RFC 8032).

    {"format": 1, "files": {"unet.plan": "<SHA-256>", …}, "public_key": "<base64>", "signature": "<base64>"}

What is signed is a line that names this format and the canonical JSON of `files`. A digest guards against accidents;
this guards against whoever can write the files and has not the key. Keys are PEM files, as `openssl genpkey -algorithm
ed25519` and `openssl pkey -pubout` write them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from commands.errors import VerificationError
from commands.whole_files import write_whole_text
from diffusion.errors import InputError
from diffusion.json_text import read_json_object
from diffusion.number_checks import shown
from diffusion.regular_files import open_regular, unreadable
from runtime.formats.sidecar import engine_files
from runtime.formats.table_file import is_table_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_FORMAT = 1
_FIELDS = {"format", "files", "public_key", "signature"}
_PEM = re.compile(rb"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----", re.DOTALL)
_MAX_KEY_BYTES = 2**20
_AGAIN = "sign it again with `python -m runtime.sign`"


def signature_path(path: Path) -> Path:
    """Where the signature of an engine or a table is."""
    return path.with_name(path.name + ".sig")


def sign(path: Path, key: Path) -> Path:
    """Sign all files of an engine, or a table; return where the signature is.

    Args:
        path: `unet.onnx`, `unet.xml`, `unet.plan` or `table.json`.
        key: PEM of an Ed25519 private key, without a passphrase.

    Raises:
        InputError: no such file, no such key, or nothing that is signed.
        ModuleNotFoundError: `cryptography` is not installed.
    """
    private = _read_private_key(key)
    files = {name: _sha256(found) for name, found in signed_files(path).items()}
    fields = {
        "format": SIGNATURE_FORMAT,
        "files": files,
        "public_key": _text(private.public_key().public_bytes_raw()),
        "signature": _text(private.sign(_signed_text(files))),
    }
    write_whole_text(signature_path(path), json.dumps(fields, indent=1) + "\n")
    return signature_path(path)


def check_signature(path: Path, keys: Path) -> str:
    """Compare all files of an engine, or a table, with their signature; return the fingerprint of the key.

    Args:
        path: as of `sign`.
        keys: PEM of the Ed25519 public keys that are trusted, one after the other.

    Raises:
        InputError: a file that cannot be read, no keys, or nothing that can be signed.
        VerificationError: there is no signature, it is not by one of these keys or of other files, or a file was
            changed.
        ModuleNotFoundError: `cryptography` is not installed.
    """
    from cryptography.exceptions import InvalidSignature

    trusted, place = read_public_keys(keys), signature_path(path)
    found = signed_files(path)
    if not place.exists():
        raise VerificationError(f"{path}: has no signature {place.name} beside it, which was required; {_AGAIN}")
    fields = read_json_object(place, _AGAIN)
    if fields.keys() != _FIELDS or type(fields["format"]) is not int or fields["format"] != SIGNATURE_FORMAT:
        raise VerificationError(
            f"{place}: is no signature of format {SIGNATURE_FORMAT} (it holds {shown(sorted(fields))}); {_AGAIN}"
        )
    raw, signature, files = _bytes(fields["public_key"]), _bytes(fields["signature"]), fields["files"]
    key = trusted.get(fingerprint(raw))
    if key is None:
        raise VerificationError(f"{place}: is by the key {fingerprint(raw)}, which is none of those in {keys}")
    try:
        key.verify(signature, _signed_text(files))
    except InvalidSignature:
        raise VerificationError(f"{place}: does not fit the key {fingerprint(raw)}: it was changed; {_AGAIN}") from None
    if not isinstance(files, Mapping) or files.keys() != found.keys():
        raise VerificationError(f"{place}: is of {shown(files)}, expected {', '.join(found)}; {_AGAIN}")
    for name, file in found.items():
        if _sha256(file) != files[name]:
            raise VerificationError(f"{file}: is not the file that was signed; copy it again, or {_AGAIN}")
    return fingerprint(raw)


def fingerprint(raw: bytes) -> str:
    """What a public key is called: the first 16 hexadecimal digits of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(raw).hexdigest()[:16]


def read_public_keys(path: Path) -> dict[str, Ed25519PublicKey]:
    """The keys of a file by their fingerprints. Raises InputError for none, or one of another kind."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    found = {}
    for number, block in enumerate(_PEM.findall(_key_bytes(path)), 1):
        try:
            key = load_pem_public_key(block)
        except Exception as error:  # it raises ValueError, UnsupportedAlgorithm and others
            raise InputError(f"{path}: key {number} cannot be read ({error}), expected an Ed25519 public key") from None
        if not isinstance(key, Ed25519PublicKey):
            raise InputError(f"{path}: key {number} is of another kind, expected an Ed25519 public key")
        found[fingerprint(key.public_bytes_raw())] = key
    if not found:
        raise InputError(f"{path}: holds no key, expected Ed25519 public keys in PEM (`openssl pkey -pubout`)")
    return found


def _read_private_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    expected = "expected an Ed25519 private key without a passphrase (`openssl genpkey -algorithm ed25519`)"
    try:
        key = load_pem_private_key(_key_bytes(path), password=None)
    except InputError:
        raise
    except Exception as error:  # as above; TypeError for a key with a passphrase
        raise InputError(f"{path}: cannot be read as a key ({error}), {expected}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path}: is a key of another kind, {expected}")
    return key


def signed_files(path: Path) -> dict[str, Path]:
    """What a signature covers, by name. Raises InputError for what cannot be signed."""
    if path.suffix in (".xml", ".plan"):
        files = engine_files(path)
        found = {name: files.current(name) for name in files.entries}
    elif path.suffix == ".onnx" or is_table_file(path):
        found = {path.name: path}
    else:
        raise InputError(f"{path}: cannot be signed, expected unet.onnx, unet.xml, unet.plan or the file of a table")
    return found


def _sha256(path: Path) -> str:
    remedy = "copy all files of the engine"
    with open_regular(path, remedy) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(path, error, remedy) from None


def _key_bytes(path: Path) -> bytes:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MAX_KEY_BYTES:
            raise InputError(f"{path}: is no regular file of at most {_MAX_KEY_BYTES} bytes, expected keys in PEM")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _signed_text(files: object) -> bytes:
    canonical = json.dumps(files, sort_keys=True, separators=(",", ":"))
    return f"ddpm-rt signature {SIGNATURE_FORMAT}\n{canonical}".encode("ascii")


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _bytes(text: object) -> bytes:
    """Of base64; what is none becomes bytes that fit nothing."""
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        return b""
