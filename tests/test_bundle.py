"""The bundle: what is in it, how it is verified, and that nothing half-written is ever left."""

import errno
import hashlib
import json
import shutil
import subprocess

import pytest

from edgevit.bundle import Bundle, staged, write_json
from edgevit.errors import BundleError


@pytest.fixture
def bundle(tmp_path, fake_bundle):
    """A copy to spoil."""
    return shutil.copytree(fake_bundle, tmp_path / "bundle")


@pytest.fixture
def spoil(bundle):
    """Factory: change the manifest."""

    def change(edit):
        path = bundle / "manifest.json"
        manifest = json.loads(path.read_text())
        edit(manifest)
        path.write_text(json.dumps(manifest))

    return change


@pytest.fixture
def inspect_refused(refused, bundle):
    return lambda: refused("inspect", bundle)


@pytest.fixture
def eval_refused(refused, bundle, pictures):
    return lambda: refused("eval", bundle, "--data", pictures.csv)


def test_manifest_has_what_the_contract_promises(fake_bundle, program_file):
    import edgevit

    manifest = json.loads((fake_bundle / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert manifest["edgevit"] == edgevit.__version__
    assert manifest["model"]["name"] == "tiny"
    assert manifest["model"]["sha256"] == hashlib.sha256(program_file.read_bytes()).hexdigest()
    assert manifest["target"] == "fake"
    assert manifest["precision"] == "fp32"
    assert manifest["runtime"]["version"]
    assert manifest["input"] == {"name": "images", "shape": [1, 3, 32, 32], "dtype": "float32"}
    assert manifest["output"]["shape"] == [1, 10]
    assert {"size", "resize", "crop_pct", "mean", "std", "channels"} <= set(manifest["preprocess"])
    assert manifest["check"]["max_abs_diff"] < 1e-4  # the same kernels as the reference
    assert manifest["kept_float"] == []
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((fake_bundle / name).read_bytes()).hexdigest() == digest


def test_every_file_of_a_bundle_is_the_manifest_the_report_or_hashed(fake_bundle):
    manifest = json.loads((fake_bundle / "manifest.json").read_text())
    assert {p.name for p in fake_bundle.iterdir()} == {"manifest.json", "report.json", *manifest["files"]}


def test_bundle_can_be_moved(tmp_path, bundle):
    Bundle.load(bundle.rename(tmp_path / "elsewhere"))


def test_one_changed_byte_is_found(eval_refused, bundle):
    path = bundle / "model.pt2"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "model.pt2 is not the file that was exported (sha256 differs); export it again" in eval_refused()


def test_missing_file_is_named(eval_refused, bundle):
    (bundle / "model.pt2").unlink()
    assert "model.pt2 is missing" in eval_refused()


def test_link_in_place_of_a_file_is_refused(eval_refused, bundle, tmp_path):
    (bundle / "model.pt2").rename(tmp_path / "outside")
    (bundle / "model.pt2").symlink_to(tmp_path / "outside")
    assert "model.pt2 is missing" in eval_refused()


@pytest.mark.parametrize("name", ["sub", "sub/x"])
def test_a_link_to_a_folder_is_refused(eval_refused, bundle, spoil, tmp_path, name):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_bytes(b"")
    (bundle / "sub").symlink_to(tmp_path / "outside")
    spoil(lambda m: m["files"].update({name: hashlib.sha256(b"").hexdigest()}))
    assert f"{name} is missing" in eval_refused()


def test_files_may_lie_in_folders_and_the_entry_may_be_one(bundle, spoil):
    (bundle / "model").mkdir()
    (bundle / "model.pt2").rename(bundle / "model" / "weights")
    spoil(lambda m: m.update(entry="model", files={"model/weights": m["files"]["model.pt2"]}))
    assert Bundle.load(bundle).size_bytes > 0
    (bundle / "model" / "weights").write_bytes(b"other")
    with pytest.raises(BundleError, match="model/weights is not the file that was exported"):
        Bundle.load(bundle)


@pytest.mark.parametrize("name", ["../x", "/etc/hostname", "sub/../../x", "sub//x", "./x", "C:\\x", "sub\\x", ".."])
def test_manifest_that_leaves_its_folder_is_refused(eval_refused, spoil, name):
    spoil(lambda m: m["files"].update({name: "0" * 64}))
    message = eval_refused()
    assert "is not a path inside the bundle" in message


@pytest.mark.parametrize("schema", [None, 0, 2, "1"])
def test_other_schema_is_refused(inspect_refused, spoil, schema):
    spoil(lambda m: m.update(schema=schema))
    assert f"has schema {schema!r}; this edgevit reads schema 1" in inspect_refused()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x80\x81"])
def test_manifest_that_is_no_json_object_is_refused(inspect_refused, bundle, text):
    (bundle / "manifest.json").write_text(text, encoding="latin-1")
    assert "manifest.json" in inspect_refused()


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.pop("files"),
        lambda m: m.update(files=["model.pt2"]),
        lambda m: m.update(files={}),
        lambda m: m.update(runtime={}),
        lambda m: m.update(model="tiny"),
        lambda m: m["input"].update(shape=[1, 3]),
        lambda m: m["output"].update(shape=[]),
        lambda m: m.update(entry="other"),
    ],
)
def test_incomplete_manifest_is_refused(inspect_refused, spoil, edit):
    spoil(edit)
    assert "export it again" in inspect_refused()


def test_unknown_target_in_a_manifest(eval_refused, spoil):
    spoil(lambda m: m.update(target="magic"))
    assert "unknown target 'magic'" in eval_refused()


def test_file_or_other_folder_is_no_bundle(refused, tmp_path, pictures):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("file", "absent"):
        assert "is the directory that `edgevit export` wrote" in refused("eval", name, "--data", pictures.csv)
    assert "it has no manifest.json" in refused("eval", "empty", "--data", pictures.csv)


# Writing


def listing(folder):
    return sorted(p.name for p in folder.rglob("*"))


def test_staged_folder_appears_only_when_complete(tmp_path):
    with staged(tmp_path / "deep" / "out", force=False) as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
    assert listing(tmp_path) == ["deep", "file", "out"]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), SystemExit(1)])
def test_staged_folder_vanishes_on_any_error(tmp_path, error):
    def stop_half_way():
        with staged(tmp_path / "out", force=False) as folder:
            (folder / "file").write_text("x")
            raise error

    with pytest.raises(type(error)):
        stop_half_way()
    assert listing(tmp_path) == []


def test_existing_bundle_needs_force_and_survives_a_failure_with_it(tmp_path, bundle):
    before = {p.name: p.read_bytes() for p in bundle.iterdir()}
    with pytest.raises(BundleError, match="--force to replace it"), staged(bundle, force=False):
        pass
    with pytest.raises(ValueError, match="bug"), staged(bundle, force=True):
        raise ValueError("bug")
    assert {p.name: p.read_bytes() for p in bundle.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_existing_bundle_survives_when_the_new_one_cannot_take_its_place(tmp_path, bundle, monkeypatch):
    from pathlib import Path

    rename = Path.rename

    def fail_for_the_new_one(self, target):
        if target == bundle and not self.name.endswith("-old"):
            raise PermissionError(errno.EACCES, "Permission denied", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(PermissionError), staged(bundle, force=True):
        pass
    Bundle.load(bundle)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_force_replaces_a_bundle(tmp_path, bundle):
    with staged(bundle, force=True) as folder:
        (folder / "manifest.json").write_text("new")
    assert listing(tmp_path) == ["bundle", "manifest.json"]


def test_force_never_replaces_what_is_no_bundle(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("home", "file"):
        with (
            pytest.raises(BundleError, match="--force replaces bundles only"),
            staged(tmp_path / name, force=True),
        ):
            pass
    assert listing(tmp_path) == ["file", "home", "thesis.tex"]


def test_place_that_cannot_be_written(refused, tmp_path, program_file):
    (tmp_path / "file").write_text("x")
    message = refused("export", program_file, "--target", "fake", "-o", "file/out")
    assert "cannot write beside file/out" in message


def test_write_json_keeps_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert listing(tmp_path) == ["a.json"]


# A full disk


def test_full_disk_is_one_line_however_the_writer_wraps_it(refused, program_file, monkeypatch):
    from edgevit.runtimes.fake import Fake

    full = OSError(errno.ENOSPC, "No space left on device")

    def plain(self, graph, folder, precision):
        (folder / "half").write_bytes(b"x" * 1000)
        raise full

    def wrapped(self, graph, folder, precision):
        (folder / "half").write_bytes(b"x" * 1000)
        raise RuntimeError("the writer failed") from full

    for build in (plain, wrapped):
        monkeypatch.setattr(Fake, "build", build)
        message = refused("export", program_file, "--target", "fake", "-o", "out")
        assert "no space left on the disk" in message
        assert "nothing was written" in message


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 KiB, smaller than the model. Its files go with it, wherever the folder is."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(("target", "package"), [("ort", "onnxruntime"), ("openvino", "openvino")])
def test_really_full_disk(cli, small_disk, program_file, target, package):
    pytest.importorskip(package)
    result = cli("export", program_file, "--target", target, "-o", small_disk / "out")
    assert result.code == 1
    assert "no space left on the disk" in result.message
    assert list(small_disk.iterdir()) == []
