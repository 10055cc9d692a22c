"""Target executorch: the .pte runs in ExecuTorch's own runtime, and the manifest says what XNNPACK did not take."""

import numpy as np
import pytest
import torch

from edgevit.errors import MissingExtra, RuntimeRefusal
from edgevit.export.trace import trace
from edgevit.quant.apply import quantize
from edgevit.runtimes import pte_passes, runtime
from edgevit.stages import InputSpec

pytest.importorskip("executorch")
TARGET = runtime("executorch")
EXACT = 1e-5  # float32 sums in another order; nothing else may differ


def outputs(engine, images):
    session = TARGET.open(engine, threads=1)
    return np.concatenate([session.run(image) for image in images])


def wanted(module, images):
    with torch.no_grad():
        return np.concatenate([module(torch.from_numpy(image)).numpy() for image in images])


def rest(engine):
    return {row["operator"]: row for row in engine.options["partition"]["rest"]}


def test_float32_is_eager_and_all_but_norms_are_delegated(engine, eager, images):
    _, built = engine("executorch")
    got, want = outputs(built, images), wanted(eager(), images)
    assert got.dtype == np.float32
    assert np.abs(got - want).max() <= EXACT * np.abs(want).max()
    assert {name: row["count"] for name, row in rest(built).items()} == {"native_layer_norm": 5}


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["tome:r=3", "evit:keep=0.5@1,2"])
def test_token_selection_stays_outside_the_delegate_and_is_listed(engine, eager, images, schedule):
    _, built = engine("executorch", schedule)
    got, want = outputs(built, images), wanted(eager(schedule), images)
    assert np.abs(got - want).max() <= EXACT * np.abs(want).max()
    assert "topk" in rest(built)
    assert all(row["reason"] for row in rest(built).values())


def test_integer_layers_are_delegated_whole(images, tmp_path):
    """A convolution and a Linear with float operators behind them: no quantizer is left without a kernel."""

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.conv, self.linear = torch.nn.Conv2d(3, 8, 8, 8), torch.nn.Linear(8, 16)
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.normal_(0, 0.3, generator=generator)

        def forward(self, x):
            return torch.nn.functional.gelu(self.linear(self.conv(x).flatten(2).transpose(1, 2))).flatten(1)

    module = Small().eval()
    policy = TARGET.policy
    program = quantize(trace(module, InputSpec(1, 32, 32)), policy.scheme, policy.rewrites, images, len(images))
    built = TARGET.build(program, tmp_path, "int8")
    assert built.options["partition"]["rest"] == []
    assert built.options["partition"]["calls"] == 1
    assert (tmp_path / "model.pte").stat().st_size < 10_000  # 1,688 weights and the format; 6,752 bytes more as floats
    got, own, want = outputs(built, images), wanted(program.program.module(), images), wanted(module, images)
    # a value between two integers may round to the other: one step of a quantizer, of 255 over its range
    assert np.median(np.abs(got - own).max(axis=1)) <= 0.02 * np.abs(own).max()
    assert 10 * np.log10(np.square(want).mean() / np.square(got - want).mean()) > 30  # three roundings of 40 dB or more
    assert np.abs(got - want).max() > 1e-3 * np.abs(want).max()


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["none", "tome:r=3"])
def test_int8_is_its_own_program(engine, graph, images, schedule):
    _, built = engine("executorch", schedule, "int8")
    own = wanted(graph(schedule, "executorch").program.module(), images)
    got = outputs(built, images)
    off = np.abs(got - own).max(axis=1) / np.abs(own).max()
    assert np.median(off) < 0.03  # values between two integers, and the merges they may change
    assert not any("quantize" in name for name in rest(built))


@pytest.mark.slow
def test_float16_is_near_eager_and_half_as_large(engine, eager, images):
    _, built = engine("executorch", "none", "fp16")
    got, want = outputs(built, images), wanted(eager(), images)
    assert got.dtype == np.float32
    assert (
        10 * np.log10(np.square(want).mean() / np.square(got - want).mean()) > 45
    )  # 66 dB an operator, some 40 of them
    assert np.abs(got - want).max() > EXACT * np.abs(want).max()
    size, whole = ((e.folder / e.entry).stat().st_size for e in (built, engine("executorch")[1]))
    assert size < 0.8 * whole  # half of the weights; the operators of a tiny model are as many bytes again


@pytest.mark.slow
def test_the_same_program_gives_the_same_bytes(engine, graph, tmp_path):
    _, built = engine("executorch")
    TARGET.build(graph(), tmp_path, "fp32")
    assert (tmp_path / "model.pte").read_bytes() == (built.folder / "model.pte").read_bytes()


def test_a_softmax_between_convolutions_is_of_its_own_axis(tmp_path):
    """Talking heads: kept with channels last, as the convolutions are, it would sum over the heads (off by 0.3)."""

    class Talking(torch.nn.Module):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.before, self.behind = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return self.behind(self.before(x).softmax(-1))

    module, images = Talking().eval(), [torch.randn(1, 3, 16, 12, generator=torch.Generator().manual_seed(0)).numpy()]
    built = TARGET.build(trace(module, InputSpec(1, 16, 12)), tmp_path, "fp32")
    got, want = outputs(built, images), wanted(module, images)
    assert np.abs(got - want).max() <= EXACT * np.abs(want).max()
    assert built.options["partition"]["rest"] == []


def test_a_norm_of_large_values_stays_float32_in_float16(tmp_path):
    """Its kernel sums squares in the type that it reads: 384 of 30 squared are more than float16 holds."""
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LayerNorm(384)).eval()
    images = [30 * torch.randn(1, 3, 16, 8, generator=torch.Generator().manual_seed(0)).numpy()]
    got, want = (
        outputs(TARGET.build(trace(module, InputSpec(1, 16, 8)), tmp_path, "fp16"), images),
        wanted(module, images),
    )
    assert np.abs(got - want).max() <= EXACT * np.abs(want).max()  # nothing else is computed, so nothing is rounded


def test_an_operator_without_a_kernel_is_named(tmp_path):
    class Sorted(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1).sort(dim=1).values

    with pytest.raises(
        RuntimeRefusal, match=r"aten_sort_default: ExecuTorch has no kernel of sort, .*; write the model"
    ):
        TARGET.build(trace(Sorted(), InputSpec(1, 8, 8)), tmp_path, "fp32")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named(engine, tmp_path):
    from dataclasses import replace

    _, built = engine("executorch")
    (tmp_path / "model.pte").write_bytes((built.folder / "model.pte").read_bytes()[:200])
    with pytest.raises(RuntimeRefusal, match=r"executorch cannot load model\.pte: .*; export it again"):
        TARGET.open(replace(built, folder=tmp_path))


def test_a_wrong_image_size_is_an_error(engine):
    _, built = engine("executorch")
    with pytest.raises(RuntimeRefusal, match=r"model\.pte takes images \[1, 3, 32, 32\], got \[1, 3, 40, 40\]; export"):
        TARGET.open(built).run(np.zeros((1, 3, 40, 40), np.float32))


def test_what_the_compiler_asserts_is_a_refusal(monkeypatch, tmp_path):
    """XNNPACK's partitioner asserts that its parts make no cycle; ours makes none, so one is made here."""
    import executorch.exir as exir

    def broken(*_, **__):
        raise AssertionError("Invalid partition, found dependency cycles\nand more")

    monkeypatch.setattr(exir, "to_edge_transform_and_lower", broken)
    with pytest.raises(RuntimeRefusal) as error:
        TARGET.build(trace(torch.nn.Flatten(), InputSpec(1, 8, 8)), tmp_path, "fp32")
    assert str(error.value) == (
        "executorch cannot lower the fp32 program: AssertionError: Invalid partition, found dependency cycles; "
        "try another precision, or take another target"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_that_fails_is_a_refusal(engine, images):
    """An error code is all that the runtime says of a kernel that fails while it runs."""
    _, built = engine("executorch")
    session = TARGET.open(built)

    def fails(_):
        raise RuntimeError("method->execute() failed with error 0x1")

    session.method = fails
    with pytest.raises(RuntimeRefusal, match=r"^executorch cannot run model\.pte: .* error 0x1; try another precision"):
        session.run(images[0])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "executorch.version", None)
    monkeypatch.setitem(__import__("sys").modules, "executorch", None)
    with pytest.raises(MissingExtra, match=r"this needs executorch.*pip install 'edgevit\[executorch\]'"):
        TARGET.version()


def test_nothing_is_written_to_the_terminal(engine, capfd):
    _, built = engine("executorch")
    TARGET.open(built)
    assert capfd.readouterr() == ("", "")


class Many(torch.nn.Module):
    """What the passes of XNNPACK look for: each would leave something wrong or refused undone."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 8, 3, 2), torch.nn.BatchNorm2d(8)
        self.lines, self.linear = torch.nn.Conv1d(8, 8, 3), torch.nn.Linear(6, 7)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            for tensor in (*self.parameters(), self.norm.running_var):
                tensor.uniform_(0.1, 0.4)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        x = torch.cat([x[:, i : i + 2] for i in range(6)], 1)[:, :8].flatten(2)
        x = self.lines(x).mean(-1)
        return self.linear(x[:, :6]).clone()


@pytest.mark.slow
@pytest.mark.parametrize("module", [Many, None], ids=["convolutions", "vit"])
def test_the_passes_that_do_not_run_would_change_nothing(module, graph, tmp_path, monkeypatch):
    program = graph() if module is None else trace(module().eval(), InputSpec(1, 32, 32))
    run, skipped = [], set()

    def noted(name, graph, ask=pte_passes.changes):
        needed = ask(name, graph)
        (run.append if needed else skipped.add)(name)
        return needed

    written = []
    for every in (False, True):
        if every:
            monkeypatch.setattr(pte_passes, "changes", lambda name, graph: name not in pte_passes.NEVER)
            monkeypatch.setattr(pte_passes, "decomposes", lambda table, graph: True)
        else:
            monkeypatch.setattr(pte_passes, "changes", noted)
        folder = tmp_path / str(len(written))
        folder.mkdir()
        TARGET.build(program, folder, "fp32")
        written.append((folder / "model.pte").read_bytes())
    assert written[0] == written[1]
    assert skipped > pte_passes.NEVER
    assert "ChannelsLastTaggedReshapePass" in run
    if module:
        assert {"FuseActivationPass", "Conv1dUnsqueezePass", "DecomposeConcatenate"} <= set(run)
