"""Target coreai: the saved asset runs in Core AI's own CPU runtime and computes its program."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgevit.errors import MissingExtra, RuntimeRefusal
from edgevit.export.trace import trace
from edgevit.quant.apply import quantize
from edgevit.runtimes import runtime
from edgevit.stages import InputSpec

pytest.importorskip("coreai")
TARGET = runtime("coreai")
EXACT = 1e-5  # float32 sums in another order; nothing else may differ


def outputs(engine, images):
    session = TARGET.open(engine)
    return np.concatenate([session.run(image) for image in images])


def wanted(module, images):
    with torch.no_grad():
        return np.concatenate([module(torch.from_numpy(image)).numpy() for image in images])


@pytest.mark.parametrize("schedule", [
    "none",
    pytest.param("tome:r=3", marks=pytest.mark.slow),
    pytest.param("evit:keep=0.5@1,2", marks=pytest.mark.slow),
])  # fmt: skip
def test_float32_is_eager(engine, eager, images, schedule):
    _, built = engine("coreai", schedule)
    got, want = outputs(built, images), wanted(eager(schedule), images)
    assert got.dtype == np.float32
    assert np.abs(got - want).max() <= EXACT * np.abs(want).max()


def decibel(got, want):
    return 10 * np.log10(np.square(want).mean() / np.square(got - want).mean())


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["none", "tome:r=3"])
def test_float16_is_near_eager_and_half_as_large(engine, eager, images, schedule):
    _, built = engine("coreai", schedule, "fp16")
    got, want = outputs(built, images), wanted(eager(schedule), images)
    assert got.dtype == np.float32
    # 11 bits give 66 dB an operator; sums of some 40. In single images rounding merges another, nearly equal, pair
    assert np.median([decibel(one, its) for one, its in zip(got, want, strict=True)]) > 45
    assert np.abs(got - want).max() > EXACT * np.abs(want).max()
    sizes = [sum((e.folder / f).stat().st_size for f in e.files) for e in (built, engine("coreai", schedule)[1])]
    assert sizes[0] < 0.8 * sizes[1]  # half of the weights; the operators of a tiny model are as many bytes again


@pytest.mark.parametrize("precision", [
    "int8+fp32", pytest.param("int8+fp16", marks=pytest.mark.slow), pytest.param("w8", marks=pytest.mark.slow)
])  # fmt: skip
def test_8_bits_are_their_own_program(graph, eager, images, precision, tmp_path):
    program = quantize(graph(), TARGET.policy.quantizes(precision), TARGET.policy.rewrites, images, len(images))
    got = outputs(TARGET.build(program, tmp_path, precision), images)
    own, want = wanted(program.program.module(), images), wanted(eager(), images)
    # In float32 nothing differs. float16 moves some values across the edge between two integers: a step of 255.
    limit = EXACT if precision == "int8+fp32" else 0.03
    assert np.median(np.abs(got - own).max(axis=1)) <= limit * np.abs(own).max()
    assert decibel(got, want) > 20  # 42 dB a layer, nothing clipped
    assert np.abs(got - want).max() > 1e-3 * np.abs(want).max()
    parameters = sum(p.numel() for p in eager().parameters())
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) < 3 * parameters  # and no float copy


def test_the_asset_is_a_folder_whose_files_are_all_named(engine):
    _, built = engine("coreai")
    assert built.entry == "model.aimodel"
    on_disk = [p.relative_to(built.folder).as_posix() for p in built.folder.rglob("*") if p.is_file()]
    assert sorted(on_disk) == list(built.files)


def test_the_same_program_gives_the_same_bytes_and_no_path_of_this_machine(engine, graph, tmp_path):
    _, built = engine("coreai")
    again = TARGET.build(graph(), tmp_path, "fp32")
    assert again.files == built.files
    for file in built.files:
        content = (built.folder / file).read_bytes()
        assert content == (tmp_path / file).read_bytes(), file
        assert b"edgevit" not in content


def test_an_operator_it_does_not_know_is_named():
    class Sorted(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1).sort(dim=1).values

    program = trace(Sorted(), InputSpec(1, 8, 8))
    says = r"refuses 1 nodes; first sort: coreai-torch has no form of aten\.sort\.default; write the model without it"
    with pytest.raises(RuntimeRefusal, match=says):
        TARGET.build(program, None, "fp32")


def test_a_damaged_asset_is_named(engine, tmp_path):
    _, built = engine("coreai")
    for file in built.files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes((built.folder / file).read_bytes()[:200])
    with pytest.raises(RuntimeRefusal, match=r"Core AI cannot load model\.aimodel: main\.mlirb is damaged; export"):
        TARGET.open(replace(built, folder=tmp_path))


def test_a_wrong_image_size_is_an_error(engine):
    _, built = engine("coreai")
    with pytest.raises(RuntimeError, match=r"invalid shape.*32"):
        TARGET.open(built).run(np.zeros((1, 3, 40, 40), np.float32))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "coreai_torch", None)
    with pytest.raises(MissingExtra, match=r"this needs coreai_torch.*pip install 'edgevit\[coreai\]'"):
        TARGET.version()


def test_nothing_is_written_to_the_terminal(engine, capfd):
    _, built = engine("coreai")
    TARGET.open(built)
    assert capfd.readouterr() == ("", "")
