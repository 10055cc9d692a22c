"""Signed bundles: by `embed --sign`, verified by `bundle verify` and by every loader; what two bundles differ in."""

import json
import shutil
import subprocess

import pytest

from edgevit.bundle import Bundle
from edgevit.commands.bundle import differences
from edgevit.embed.write import embed
from edgevit.errors import BundleError
from edgevit.signing import private_key, public_hex, read_public, sign, verify
from tests.embed.conftest import change
from tests.embed.test_python import run

cryptography = pytest.importorskip("cryptography")


def write_key(path):
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    return path


@pytest.fixture
def key(tmp_path):
    return write_key(tmp_path / "key.pem")


@pytest.fixture
def bundle(fake_bundle, tmp_path):
    return shutil.copytree(fake_bundle, tmp_path / "b")


def test_a_signed_bundle_verifies_by_its_key_alone(bundle, key, tmp_path):
    public = public_hex(private_key(key))
    with pytest.raises(BundleError, match=r"is not signed: it has no manifest.sig"):
        verify(bundle, public)
    sign(bundle, private_key(key))
    verify(bundle, public)
    other = public_hex(private_key(write_key(tmp_path / "other.pem")))
    with pytest.raises(BundleError, match="is not by the key"):
        verify(bundle, other)
    change(bundle, lambda m: m.update(precision="fp16"))
    with pytest.raises(BundleError, match=r"or manifest.json was changed"):
        verify(bundle, public)


def test_the_command_line_verifies(cli, refused, bundle, key):
    result = cli("bundle", "verify", bundle, "--json")
    assert result.json == {"bundle": str(bundle), "files": 1, "signed_by": None}
    public = public_hex(private_key(key))
    assert "is not signed" in refused("bundle", "verify", bundle, "--key", public)
    sign(bundle, private_key(key))
    assert f"signed by {public}" in cli("bundle", "verify", bundle, "--key", public).out
    (bundle / "model.pt2").write_bytes(b"x")
    assert "model.pt2 is not the file that was exported" in refused("bundle", "verify", bundle, "--key", public)


def test_a_public_key_is_read_from_openssl_s_file_too(key, tmp_path):
    made = tmp_path / "public.pem"
    openssl = shutil.which("openssl") or pytest.skip("needs openssl")
    subprocess.run([openssl, "pkey", "-in", str(key), "-pubout", "-out", str(made)], check=True)
    assert read_public(str(made)) == public_hex(private_key(key))


def test_a_key_that_is_none_is_refused(tmp_path):
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    path = tmp_path / "key.pem"
    with pytest.raises(BundleError, match="cannot read the key"):
        private_key(path)
    path.write_text("no key")
    with pytest.raises(BundleError, match=r"holds no key that can be read .*openssl genpkey"):
        private_key(path)
    other = X25519PrivateKey.generate()
    path.write_bytes(other.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    with pytest.raises(BundleError, match="is no ed25519 private key"):
        private_key(path)


def test_differences_are_named_to_the_key(cli, bundle, fake_bundle):
    assert cli("bundle", "diff", bundle, fake_bundle).out == "no difference\n"
    change(bundle, lambda m: m["model"].update(name="other"))
    assert cli("bundle", "diff", bundle, fake_bundle).out == "model.name: other → tiny\n"
    found = cli("bundle", "diff", bundle, fake_bundle, "--json").json["differences"]
    assert found == [{"key": "model.name", "a": "other", "b": "tiny"}]
    assert differences({"a": 1}, {}) == [{"key": "a", "a": 1, "b": None}]


def test_the_python_app_takes_no_unsigned_bundle(demo_bundle, scenes, key, tmp_path):
    source = demo_bundle("ort", "fp32", "tome:r=10").folder
    embed(source, "python", tmp_path / "app", key=key)
    app, image = tmp_path / "app", scenes[0].files[0]
    assert "cryptography" in (app / "requirements.txt").read_text()
    assert run(app, image).returncode == 0
    change(app / "bundle", lambda m: m.update(edgevit="9"))
    assert "manifest.json was changed" in run(app, image).stderr
    (app / "bundle/manifest.sig").unlink()
    assert "is not signed: it has no manifest.sig" in run(app, image).stderr
    assert "is not signed" in run(app, image, "--bundle", source).stderr


def test_each_app_holds_the_key(demo_bundle, key, tmp_path):
    public = public_hex(private_key(key))
    embed(demo_bundle("ort", "fp32", "tome:r=10").folder, "cpp", tmp_path / "cpp", key=key)
    assert f'set(PUBLIC_KEY "{public}"' in (tmp_path / "cpp/CMakeLists.txt").read_text()
    verify(tmp_path / "cpp/bundle", public)
    assert (
        json.loads((tmp_path / "cpp/bundle/manifest.json").read_text()) == Bundle.load(tmp_path / "cpp/bundle").manifest
    )


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_the_cpp_app_takes_no_unsigned_bundle(bundle, key, tmp_path):
    """What verifies, compiled by itself: it needs no runtime."""
    from importlib import resources

    public, source = public_hex(private_key(key)), str(resources.files("edgevit.embed.app_cpp"))
    names = ("golden_test", "bundle", "json", "preprocess", "sha256", "signature")
    command = ["g++", "-std=c++17", f'-DPUBLIC_KEY="{public}"', f"-I{source}", *(f"{source}/{n}.cpp" for n in names)]
    done = subprocess.run([*command, "-lcrypto", "-o", str(tmp_path / "check")], capture_output=True, text=True)
    if "openssl/evp.h" in done.stderr:
        pytest.skip("needs OpenSSL's headers")
    assert done.returncode == 0, done.stderr
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden/golden.json").write_text('{"vectors": []}')

    def check():
        line = [str(tmp_path / "check"), str(bundle), str(tmp_path / "golden")]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    assert "is not signed: it has no manifest.sig" in check().stdout
    sign(bundle, private_key(key))
    assert check().returncode == 0
    change(bundle, lambda m: m.update(edgevit="9"))
    assert "manifest.json was changed" in check().stdout
