"""A signature is of these files, by this key, and of nothing else; without one nothing runs where one is required."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from commands.errors import VerificationError
from diffusion.errors import InputError
from diffusion.samplers import make_table
from runtime.formats.signature import check_signature, fingerprint, sign, signature_path
from runtime.formats.table_file import TableFile
from runtime.sample import main as sample
from runtime.sampler import Sampler
from runtime.sign import main as sign_command
from tests.runtime.gaussian_folder import PROCESS

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

ENGINES = {
    "unet.plan": ("unet.plan", "unet.plan.json", "unet.plan.golden.npz"),
    "unet.xml": ("unet.xml", "unet.bin", "unet.xml.json", "unet.xml.golden.npz"),
    "unet.onnx": ("unet.onnx",),
    "table.json": ("table.json",),
}


def write_key(path, key, password=None):
    encryption = pem.NoEncryption() if password is None else pem.BestAvailableEncryption(password)
    path.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, encryption))
    return path


def public_pem(key):
    return key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def key(tmp_path):
    """A key; its public half is the second of two in keys.pem."""
    mine, other = (ed25519.Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
    (tmp_path / "keys.pem").write_bytes(b"# of the builders\n" + public_pem(other) + public_pem(mine))
    (tmp_path / "other.pem").write_bytes(public_pem(other))
    write_key(tmp_path / "key.pem", mine)
    return mine


def engine(folder: Path, name: str) -> Path:
    """Files of an engine, as far as a signature looks at them."""
    folder.mkdir(exist_ok=True)
    for each in ENGINES[name]:
        (folder / each).write_text(f"what stands in {each}")
    return folder / name


@pytest.mark.parametrize("name", ENGINES)
def test_every_file_is_signed_and_a_change_of_any_is_refused(tmp_path, key, name):
    path = engine(tmp_path / "a", name)
    assert sign(path, tmp_path / "key.pem") == signature_path(path)
    expected = hashlib.sha256(key.public_key().public_bytes_raw()).hexdigest()[:16]
    assert check_signature(path, tmp_path / "keys.pem") == expected == fingerprint(key.public_key().public_bytes_raw())
    assert set(json.loads(signature_path(path).read_text())["files"]) == set(ENGINES[name])
    for each in ENGINES[name]:
        file = path.with_name(each)
        content = file.read_bytes()
        file.write_bytes(content[:-1] + b"?")
        with pytest.raises(VerificationError, match=f"{each}: is not the file that was signed"):
            check_signature(path, tmp_path / "keys.pem")
        file.unlink()
        with pytest.raises(InputError, match=f"{each}: no such file; copy all files of the engine"):
            check_signature(path, tmp_path / "keys.pem")
        os.mkfifo(file)
        with pytest.raises(InputError, match=f"{each}: is a pipe, expected a regular file"):
            check_signature(path, tmp_path / "keys.pem")
        file.unlink()
        file.write_bytes(content)
    check_signature(path, tmp_path / "keys.pem")


def test_a_key_that_is_not_listed(tmp_path, key):
    path = engine(tmp_path, "unet.plan")
    sign(path, tmp_path / "key.pem")
    with pytest.raises(
        VerificationError, match=r"unet\.plan\.sig: is by the key [0-9a-f]{16}, which is none of those in"
    ):
        check_signature(path, tmp_path / "other.pem")


def test_no_signature(tmp_path, key):
    path = engine(tmp_path, "unet.plan")
    with pytest.raises(VerificationError, match=r"unet\.plan: has no signature unet\.plan\.sig beside it"):
        check_signature(path, tmp_path / "keys.pem")


def test_the_signature_of_another_engine(tmp_path, key):
    path = engine(tmp_path, "unet.plan")
    sign(path, tmp_path / "key.pem")
    other = engine(tmp_path, "unet.xml")
    shutil.copy(signature_path(path), signature_path(other))
    with pytest.raises(VerificationError, match=r"unet\.xml\.sig: is of .*expected unet\.xml, unet\.bin"):
        check_signature(other, tmp_path / "keys.pem")


def test_what_is_not_the_signature_that_was_made(tmp_path, key):
    path = engine(tmp_path, "unet.plan")
    place = sign(path, tmp_path / "key.pem")
    whole = json.loads(place.read_text())
    junk = base64.b64encode(b"\1" * 64).decode()
    of_files = whole["files"] | {"unet.plan": "0" * 64}
    for change, says in (
        ({"files": of_files}, "does not fit the key"),
        ({"files": [1]}, "does not fit the key"),
        ({"signature": junk}, "does not fit the key"),
        ({"signature": "é"}, "does not fit the key"),
        ({"signature": None}, "does not fit the key"),
        ({"public_key": junk}, "which is none of those"),
        ({"public_key": 7}, "which is none of those"),
        ({"format": 2}, "is no signature of format 1"),
        ({"format": True}, "is no signature of format 1"),
        ({"more": 1}, "is no signature of format 1"),
    ):
        place.write_text(json.dumps(whole | change))
        with pytest.raises(VerificationError, match=rf"unet\.plan\.sig: .*{says}"):
            check_signature(path, tmp_path / "keys.pem")
    place.write_text("junk")
    with pytest.raises(InputError, match="not JSON"):
        check_signature(path, tmp_path / "keys.pem")


def test_what_is_no_key(tmp_path, key):
    path = engine(tmp_path, "unet.plan")
    elliptic = ec.generate_private_key(ec.SECP256R1())
    write_key(tmp_path / "elliptic.pem", elliptic)
    write_key(tmp_path / "locked.pem", key, password=b"secret")
    (tmp_path / "junk.pem").write_text("junk")
    for name, says in (
        ("elliptic.pem", "is a key of another kind, expected an Ed25519"),
        ("locked.pem", "cannot be read as a key .*without a passphrase"),
        ("junk.pem", "cannot be read as a key"),
        ("none.pem", "cannot be read"),
        ("keys.pem", "cannot be read as a key"),
    ):
        with pytest.raises(InputError, match=f"{name}: {says}"):
            sign(path, tmp_path / name)
    assert not signature_path(path).exists()
    sign(path, tmp_path / "key.pem")
    (tmp_path / "public.pem").write_bytes(public_pem(elliptic))
    for name, says in (
        ("public.pem", "key 1 is of another kind"),
        ("key.pem", "key 1 cannot be read"),
        ("junk.pem", "holds no key"),
        ("", "is no regular file"),
    ):
        with pytest.raises(InputError, match=says):
            check_signature(path, tmp_path / name)
    with pytest.raises(InputError, match=r"cannot be signed, expected unet\.onnx"):
        sign(tmp_path, tmp_path / "key.pem")


def test_a_run_that_requires_signatures_of_engine_and_table(folder, tmp_path, key, capsys):
    TableFile(make_table(PROCESS, "ddim", 3), None, True).write(Path("table.json"))
    run = ["--num", "1", "--sampler", "table.json", "--backend", "onnxruntime", "--require-signature", "keys.pem"]
    assert sample(run) == 3
    assert "unet.onnx: has no signature unet.onnx.sig beside it" in capsys.readouterr().err
    assert sign_command(["unet.onnx", "--key", "key.pem"]) == 0
    assert sample(run) == 3
    assert "table.json: has no signature" in capsys.readouterr().err
    assert not Path("samples").exists()
    assert sign_command(["table.json", "--key", "key.pem"]) == 0
    assert sign_command(["table.json", "--check", "keys.pem"]) == 0
    assert sample(run) == 0
    err = capsys.readouterr().err
    assert err.count("signed by the key ") == 2
    assert sample([*run[:-1], "other.pem", "--overwrite"]) == 3


@pytest.mark.parametrize("name", ["unet.onnx", "table.json"])
def test_a_file_that_is_replaced_while_it_is_opened(folder, tmp_path, key, capsys, monkeypatch, name):
    """Whoever can write the files waits for the check, and puts the signed file back afterwards."""
    TableFile(make_table(PROCESS, "ddim", 3), None, True).write(Path("table.json"))
    for each in ("unet.onnx", "table.json"):
        assert sign_command([each, "--key", "key.pem"]) == 0

    def open_another(*given, **options):
        Path(name).rename("signed")
        shutil.copy("signed", name)
        sampler = Sampler(*given, **options)
        Path("signed").replace(name)
        return sampler

    monkeypatch.setattr("runtime.sample_request.Sampler", open_another)
    run = ["--num", "1", "--sampler", "table.json", "--backend", "onnxruntime", "--require-signature", "keys.pem"]
    assert sample(run) == 3
    assert f"{name}: was written after its signature was checked" in capsys.readouterr().err
    assert not Path("samples").exists()


def test_a_service_that_requires_a_signature(folder, tmp_path, key, capsys, monkeypatch):
    pytest.importorskip("fastapi")
    from runtime.serve import __main__ as service

    words = ["--port", "0", "--backend", "onnxruntime", "--require-signature", "keys.pem"]
    assert service.main(words) == 3
    assert "unet.onnx: has no signature unet.onnx.sig beside it" in capsys.readouterr().err
    assert sign_command(["unet.onnx", "--key", "key.pem"]) == 0

    def open_another(*given):
        shutil.copy("unet.onnx", "another")
        Path("another").replace("unet.onnx")
        return open_engine(*given)

    open_engine = service.open_engine
    monkeypatch.setattr(service, "open_engine", open_another)
    assert service.main(words) == 3
    assert "unet.onnx: was written after its signature was checked" in capsys.readouterr().err
