"""A signature fits one text and one key; keys that others may know are refused."""

import base64
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from checkpoints.publish import keys
from checkpoints.publish.signature import check_signature, read_private_key, read_public_key, sign_release, write_key_pair
from olmo_train.errors import EXIT_USAGE, CheckpointError, ConfigError, run_command

TEXT = b'{"name": "stage1-step10-tokens0B"}\n'


@pytest.fixture
def key(tmp_path: Path) -> Path:
    write_key_pair(tmp_path / "key")
    return tmp_path / "key"


def public(key: Path) -> str:
    return read_public_key(key.with_name(f"{key.name}.pub"))


def write_pem(file: Path, key: Any, encryption: Any = None) -> Path:
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))
    file.chmod(0o600)
    return file


def test_a_signature_names_its_key_and_whether_it_is_trusted(key: Path) -> None:
    signature = sign_release(TEXT, key)
    assert signature == sign_release(TEXT, key)
    signer = check_signature(TEXT, signature, [public(key)], "here")
    assert (signer.public_key, signer.is_trusted) == (public(key), True)
    assert json.loads(signature) == {
        "algorithm": "ed25519",
        "public_key": public(key),
        "signature": base64.b64encode(read_private_key(key).sign(TEXT)).decode(),
    }


def test_a_foreign_key_is_not_trusted(key: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_key_pair(other)
    signature = sign_release(TEXT, other)
    assert not check_signature(TEXT, signature, [public(key)], "here").is_trusted
    assert not check_signature(TEXT, signature, [], "here").is_trusted
    assert check_signature(TEXT, signature, [public(key), public(other)], "here").is_trusted


def test_a_changed_text_or_signature_does_not_fit(key: Path, tmp_path: Path) -> None:
    signature = sign_release(TEXT, key)
    write_key_pair(tmp_path / "other")
    values = json.loads(signature)
    others = [
        (TEXT + b" ", signature),
        (TEXT, json.dumps(values | {"signature": base64.b64encode(bytes(64)).decode()}).encode()),
        (TEXT, json.dumps(values | {"signature": ""}).encode()),
        (TEXT, json.dumps(values | {"public_key": public(tmp_path / "other")}).encode()),
    ]
    for text, changed in others:
        with pytest.raises(CheckpointError, match=r"here/release.json.sig does not fit release.json: .* changed after signing"):
            check_signature(text, changed, [public(key)], "here")


@pytest.mark.parametrize(
    "damaged",
    [
        b"", b"\xff", b"[]", b"{}", b'{"algorithm": "ed25519"}',
        b'{"algorithm": "rsa", "public_key": "", "signature": ""}',
        b'{"algorithm": "ed25519", "public_key": "AAAA", "signature": ""}',
        b'{"algorithm": "ed25519", "public_key": "%%%", "signature": ""}',
        b'{"algorithm": "ed25519", "public_key": 1, "signature": ""}',
    ],
)  # fmt: skip
def test_a_damaged_signature_file_is_told(damaged: bytes) -> None:
    with pytest.raises(
        CheckpointError, match=r"here/release.json.sig cannot be used: .*; fetch it again, or sign the release again"
    ):
        check_signature(TEXT, damaged, [], "here")


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_olmo_keys_new_writes_a_pair_that_openssl_understands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "release key"
    keys.main([str(file)])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    said = capsys.readouterr().out
    assert f"{file}: private key" in said
    assert f"{file}.pub: public key {public(file)}" in said
    shown = subprocess.run(["openssl", "pkey", "-in", file, "-pubout"], capture_output=True, text=True, check=True).stdout
    assert shown == Path(f"{file}.pub").read_text()


def test_a_key_is_never_overwritten(key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = key.read_bytes()
    assert run_command(keys.main, [str(key)]) == EXIT_USAGE
    assert "exists already; a key is never overwritten: give another name" in capsys.readouterr().err
    key.unlink()
    with pytest.raises(ConfigError, match=r"key.pub exists already"):
        write_key_pair(key)
    assert not key.exists()
    assert before


def test_a_key_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Not a directory; the key was not written"):
        write_key_pair(tmp_path / "file" / "key")
    with pytest.raises(ConfigError, match="No such file or directory; the key was not written"):
        write_key_pair(tmp_path / "absent" / "key")
    long = "k" * 253  # the name of the public key is too long for a file, that of the private one is not
    with pytest.raises(ConfigError, match="File name too long"):
        write_key_pair(tmp_path / long)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_key_of_openssl_signs_and_openssl_checks_what_it_signed(tmp_path: Path) -> None:
    file, pem = tmp_path / "key.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", file], check=True)
    file.chmod(0o600)
    subprocess.run(["openssl", "pkey", "-in", file, "-pubout", "-out", pem], check=True)
    values = json.loads(sign_release(TEXT, file))
    assert values["public_key"] == read_public_key(pem)
    (tmp_path / "text").write_bytes(TEXT)
    (tmp_path / "signature").write_bytes(base64.b64decode(values["signature"]))
    words = ["-pubin", "-inkey", str(pem), "-rawin", "-in", str(tmp_path / "text"), "-sigfile", str(tmp_path / "signature")]
    subprocess.run(["openssl", "pkeyutl", "-verify", *words], check=True, capture_output=True)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_private_key_that_others_may_read_is_refused(key: Path, mode: int) -> None:
    key.chmod(mode)
    with pytest.raises(ConfigError, match=rf"may be read by others \(mode {mode:o}\); chmod 600 it, or make a new key"):
        sign_release(TEXT, key)


def test_a_private_key_that_is_none_of_ours_is_refused(key: Path, tmp_path: Path) -> None:
    ours = Ed25519PrivateKey.generate()
    ssh = tmp_path / "ssh"
    ssh.write_bytes(ours.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    ssh.chmod(0o600)
    garbage = tmp_path / "garbage"
    garbage.write_text("garbage")
    garbage.chmod(0o600)
    public_file = key.with_name("key.pub")
    public_file.chmod(0o600)
    refused = {
        write_pem(
            tmp_path / "rsa", rsa.generate_private_key(65537, 2048)
        ): r"of another algorithm \(RSAPrivateKey\), must be Ed25519",
        write_pem(tmp_path / "ec", ec.generate_private_key(ec.SECP256R1())): r"of another algorithm \(ECPrivateKey\)",
        write_pem(
            tmp_path / "encrypted", ours, BestAvailableEncryption(b"word")
        ): r"is encrypted, .* openssl pkey -in .*encrypted -out PLAIN",
        ssh: r"is not a private key in PEM \(PKCS#8\); make one with `olmo keys new FILE`",
        garbage: r"is not a private key in PEM",
        public_file: "is a public key; give the private one",
        tmp_path / "absent": r"No such file or directory; make one with",
        tmp_path: r"(Is a directory|may be read by others)",
    }
    for file, message in refused.items():
        with pytest.raises(ConfigError, match=rf"--sign={file}:? .*{message}"):
            read_private_key(file)


def test_a_public_key_that_is_none_is_refused(key: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pub"
    secret = rsa.generate_private_key(65537, 2048)
    other.write_bytes(secret.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(ConfigError, match=r"other.pub is of another algorithm \(RSAPublicKey\), must be Ed25519"):
        read_public_key(other)
    with pytest.raises(ConfigError, match=r"key is not a public key in PEM; give the .pub file of the key that signed"):
        read_public_key(key)
    with pytest.raises(ConfigError, match=r"absent: No such file or directory; give the .pub file"):
        read_public_key(tmp_path / "absent")


def test_without_the_package_the_extra_is_named(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for call in (lambda: sign_release(TEXT, key), lambda: check_signature(TEXT, b"{}", [], "here"), lambda: write_key_pair(key)):
        with pytest.raises(ConfigError, match=r"needs the package cryptography; pip install 'olmo-train\[publish\]'"):
            call()
