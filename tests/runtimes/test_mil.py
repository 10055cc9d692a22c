"""The executor of ML Programs: every operator it has against torch, through a package written by coremltools."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgevit.errors import BundleError, RuntimeRefusal
from edgevit.export.to_coreml import import_coremltools, to_coreml
from edgevit.export.trace import trace
from edgevit.runtimes.mil import MilSession
from edgevit.runtimes.mil_file import Declared, read_program, unpacked
from edgevit.runtimes.mil_ops import OPERATORS
from edgevit.runtimes.mil_weights import WEIGHTS
from edgevit.stages import InputSpec

pytest.importorskip("google.protobuf")
INPUTS = InputSpec(2, 10, 8)
SUMS = 1e-5  # float32 sums in another order
GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape):
    return torch.randn(shape, generator=GENERATOR)


W = {
    "conv": drawn(4, 3, 3, 3), "even": drawn(4, 3, 2, 4), "depthwise": drawn(6, 1, 3, 3), "line": drawn(4, 3, 3),
    "up": drawn(3, 4, 4, 4), "up_groups": drawn(3, 2, 3, 3), "linear": drawn(5, 8), "b4": drawn(4), "b5": drawn(5),
    "c3": drawn(3), "positive3": drawn(3).abs() + 0.5, "c8": drawn(8), "plane": drawn(10, 8), "mask": drawn(10, 10),
    "keep": drawn(10, 10) > -1, "rows": torch.tensor([7, 0, 3, 3]),
    "places": torch.randint(0, 10, (2, 3, 4, 8), generator=GENERATOR),
}  # fmt: skip


def layers(x):
    yield F.conv2d(x, W["conv"], W["b4"], stride=(2, 1), padding=(2, 1))
    yield F.conv2d(x, W["conv"], dilation=2)
    yield F.conv2d(x, W["even"], padding="same")
    yield F.conv2d(F.pad(x, (0, 1, 2, 0)), W["conv"], stride=2)
    yield F.conv2d(x, W["depthwise"], padding=1, groups=3)
    yield F.conv1d(x.flatten(2), W["line"], W["b4"], stride=3, padding=1)
    yield F.conv_transpose2d(x, W["up"], W["b4"], stride=2, padding=1)
    yield F.conv_transpose2d(x, W["up_groups"], stride=3)
    yield F.linear(x, W["linear"], W["b5"])
    yield F.linear(x, W["linear"])
    yield x @ x.transpose(-2, -1)
    yield torch.einsum("bchw,bcgw->bchg", x, x)
    yield F.avg_pool2d(x, 3, 2, 1)
    yield F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    yield F.avg_pool2d(x, 3, 2, ceil_mode=True)
    yield F.avg_pool1d(x.flatten(2), 4)
    yield F.max_pool2d(x, 3, 2, 1)
    yield F.max_pool2d(x, (2, 3), ceil_mode=True)
    yield F.adaptive_avg_pool2d(x, 1)
    yield F.adaptive_avg_pool2d(x, (5, 2))
    yield F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    yield F.interpolate(x, size=(15, 16), mode="bilinear", align_corners=False)
    yield F.interpolate(x, size=(20, 24), mode="bilinear", align_corners=True)
    yield F.interpolate(x, scale_factor=2, mode="nearest")
    yield F.pixel_shuffle(x.flatten(2)[..., :64].reshape(2, 12, 4, 4), 2)
    yield F.pixel_unshuffle(x, 2)
    yield F.scaled_dot_product_attention(x, x * 2, x)
    yield F.scaled_dot_product_attention(x, x, x, W["mask"])
    yield F.scaled_dot_product_attention(x, x, x, W["keep"])


def norms_and_activations(x):
    yield F.layer_norm(x, (8,), W["c8"], W["c8"] + 1, 1e-3)
    yield F.layer_norm(x, (10, 8), W["plane"])
    yield F.layer_norm(x, (8,))
    yield F.layer_norm(x.permute(0, 2, 3, 1), (3,), W["c3"], W["c3"]).permute(0, 3, 1, 2)
    yield F.batch_norm(x, W["c3"], W["positive3"], W["c3"], W["c3"] + 1)
    yield F.group_norm(x, 3, W["c3"], W["c3"])
    yield F.group_norm(x, 1)
    yield F.instance_norm(x)
    yield F.normalize(x, dim=-1)
    yield x.norm(dim=1, keepdim=True)
    yield F.rms_norm(x, (8,), W["c8"], 1e-5)
    for run in (
        F.gelu, F.relu, F.relu6, F.silu, F.hardswish, F.hardsigmoid, torch.sigmoid, torch.tanh, torch.erf, torch.sin,
        torch.cos, torch.abs, torch.exp, torch.ceil, torch.floor, torch.square, torch.sign, torch.neg, torch.round,
    ):  # fmt: skip
        yield run(x)
    yield F.gelu(x, approximate="tanh")
    yield F.leaky_relu(x, 0.2)
    yield F.elu(x, 0.7)
    yield F.softplus(x)
    yield F.softmax(x, 1)
    yield F.softmax(x, -1)
    yield torch.log(x.abs() + 0.1) + torch.sqrt(x.abs()) + torch.rsqrt(x.abs() + 0.1)
    yield 1 / (x.abs() + 0.5)
    yield x.abs().pow(1.5) + x.clamp(-0.5, 0.7) + x.clamp_min(0.1)
    yield torch.maximum(x, -x) - torch.minimum(x, x * 2) / (x.abs() + 1)


def orders_and_places(x):
    for axes in ((1,), (-1, 2), (0, 1, 2, 3)):
        yield x.sum(axes)
        yield x.mean(axes, keepdim=True)
        yield x.amax(axes)
        yield x.amin(axes, keepdim=True)
    yield x.logsumexp(1)
    yield x.argmax(-1)
    yield x.argmin(1, keepdim=True)
    for largest in (True, False):
        values, indices = x.topk(4, 2, largest)
        yield values
        yield indices
    yield x.argsort(-1, descending=True)
    yield x.cumsum(2)
    yield x[:, 1:, -7:-1:2, 3]
    yield x[:, :, [7, 0, 3]]
    yield x[:, [0, 2, 1], [1, 4, -1]]
    yield x.index_select(3, W["rows"])
    yield x.gather(2, W["places"])
    yield x.select(1, -1)
    yield x.flip(3)
    yield x.roll((2, -3), (2, 3))
    yield F.pad(x, (1, 2, 0, 3), value=-2.0)
    yield F.pad(x, (1, 2, 3, 0), mode="reflect")
    yield F.pad(x, (1, 2, 3, 0), mode="replicate")
    yield torch.cat([x, x * 2], -1) + torch.stack([x, -x], -1).flatten(3)
    yield torch.cat(x.split([3, 1, 6], 2)[::-1], 2)
    yield torch.cat(x.chunk(4, -1)[1:3] + x.unbind(0)[0].unsqueeze(0).repeat(2, 1, 1, 1).chunk(4, -1)[:1], -1)
    yield x.permute(3, 0, 2, 1).reshape(4, -1)[:, None].squeeze(1)
    yield x.mean(-1, keepdim=True).expand(-1, -1, -1, 5)
    yield torch.full_like(x, 0.5) + x


def decisions(x):
    whole = (x * 10).to(torch.int32)
    yield whole
    yield whole // 3
    yield whole % 7
    yield torch.div(x, 0.3, rounding_mode="floor")
    yield torch.where(x > 0.2, x, -1.0)
    yield torch.where((x > 0) & (whole != 3) | ~(x <= 1), whole, whole + 5)
    yield (x >= 0.1).to(x.dtype) + (x < -0.1).to(x.dtype) + (whole == 2).to(x.dtype)
    order = x.mean(1).flatten(1).topk(7, -1).indices
    yield order
    yield order.topk(7, largest=False).values
    yield (order.unsqueeze(-1) == torch.arange(80)).to(x.dtype) @ x.flatten(2).transpose(1, 2)


GROUPS = {f.__name__: f for f in (layers, norms_and_activations, orders_and_places, decisions)}


class Every(nn.Module):
    """All results of a group in one output, a row an image."""

    def __init__(self, group):
        super().__init__()
        self.group = group

    def forward(self, x):
        return torch.cat([part.to(x.dtype).flatten() for part in self.group(x)]).unsqueeze(0)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Group → its package."""
    import_coremltools()
    made = {}
    for name, group in GROUPS.items():
        made[name] = tmp_path_factory.mktemp("mil") / f"{name}.mlpackage"
        to_coreml(trace(Every(group), INPUTS), made[name], "iOS18", half=False, fused=True)
    return made


@pytest.mark.parametrize("name", GROUPS)
def test_operators_compute_what_torch_computes(packages, name):
    images = drawn(*INPUTS.shape)
    parts = [part.to(images.dtype).flatten() for part in GROUPS[name](images)]
    found = torch.from_numpy(MilSession(packages[name]).run(images.numpy()))[0].split([len(part) for part in parts])
    for place, (got, want) in enumerate(zip(found, parts, strict=True)):
        assert (got - want).abs().max() <= SUMS * max(1, want.abs().max()), f"{name}, result {place}"


def test_no_operator_is_untried(packages):
    tried = {o.kind for package in packages.values() for o in read_program(package).operations}
    assert set(OPERATORS) - set(WEIGHTS) == tried


def test_float16_results_are_rounded_once_and_overflow():
    from edgevit.runtimes.mil import _typed

    declared = Declared("FLOAT16", (4,))
    values = torch.tensor([1 + 2**-11, 2049.0, 7e4, 1e-9])
    assert _typed(values, declared).tolist() == [1.0, 2048.0, float("inf"), 0.0]
    with pytest.raises(ValueError, match=r"it gives \[4\], the file declares \[5\]"):
        _typed(values, Declared("FLOAT32", (5,)))


def test_an_unknown_operator_is_refused_by_name(packages, monkeypatch):
    monkeypatch.delitem(OPERATORS, "topk")
    monkeypatch.delitem(OPERATORS, "cumsum")
    with pytest.raises(RuntimeRefusal, match="the executor does not know cumsum, topk; check it on a device"):
        MilSession(packages["orders_and_places"])


def test_an_unknown_parameter_is_refused_not_ignored(packages, monkeypatch):
    monkeypatch.setitem(OPERATORS, "topk", lambda x, k: torch.topk(x, k))
    session = MilSession(packages["orders_and_places"])
    with pytest.raises(RuntimeRefusal, match=r"cannot run topk '.*' as written: .*unexpected keyword"):
        session.run(np.zeros(INPUTS.shape, np.float32))


def test_constants_read_as_coremltools_writes_them(tmp_path):
    import_coremltools()
    from coremltools.libmilstoragepython import _BlobStorageWriter

    from edgevit.runtimes.mil_file import _Reader

    generator = np.random.default_rng(0)
    (tmp_path / "weights").mkdir()
    writer = _BlobStorageWriter(str(tmp_path / "weights" / "weight.bin"))
    want = {
        "FLOAT32": generator.standard_normal(7).astype(np.float32),
        "INT8": generator.integers(-128, 128, 9).astype(np.int8),
        "UINT8": generator.integers(0, 256, 5).astype(np.uint8),
        "FLOAT16": generator.standard_normal(3).astype(np.float16),
    }
    write = {"FLOAT32": "float", "INT8": "int8", "UINT8": "uint8", "FLOAT16": "fp16"}
    reader = _Reader.__new__(_Reader)
    reader.folder, reader.blobs = tmp_path, {}
    places = {}
    for kind, values in want.items():
        stored = values.view(np.uint16) if kind == "FLOAT16" else values
        places[kind] = getattr(writer, f"write_{write[kind]}_data")(stored)
    del writer

    class Place:
        fileName = "@model_path/weights/weight.bin"

    for kind, values in want.items():
        Place.offset = places[kind]
        assert (reader.blob(Place, Declared(kind, values.shape)) == values).all()
    Place.offset = places["INT8"] + 8
    with pytest.raises(ValueError, match="has no constant at byte"):
        reader.blob(Place, Declared("INT8", (9,)))


@pytest.mark.parametrize(("kind", "bits"), [("UINT1", 1), ("UINT2", 2), ("UINT3", 3), ("UINT4", 4), ("UINT6", 6)])
def test_small_integers_are_packed_lowest_bits_first(kind, bits):
    import_coremltools()
    from coremltools.optimize._utils import pack_elements_into_bits

    values = np.random.default_rng(bits).integers(0, 2**bits, 21).astype(np.uint8)
    assert (unpacked(pack_elements_into_bits(values, bits).tobytes(), Declared(kind, (21,))) == values).all()


def test_signed_4_bits_are_in_twos_complement():
    assert unpacked(bytes([0x8F, 0x07]), Declared("INT4", (3,))).tolist() == [-1, -8, 7]


def test_compressed_weights_are_what_coremltools_decompresses():
    import_coremltools()
    from coremltools.converters.mil.mil.ops.defs.iOS16 import constexpr_ops
    from coremltools.converters.mil.mil.ops.defs.iOS18 import compression

    generator = np.random.default_rng(0)
    data = generator.integers(-128, 128, (6, 8)).astype(np.int8)
    scale, offset = generator.random((6, 2), np.float32), generator.integers(-9, 9, (6, 2)).astype(np.int8)
    want = compression.constexpr_blockwise_shift_scale.decompress(data, scale, offset)
    got = WEIGHTS["constexpr_blockwise_shift_scale"](*map(torch.from_numpy, (data, scale, offset)))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    column = generator.random(8, np.float32)
    want = constexpr_ops.constexpr_affine_dequantize.decompress(data, np.int8(3), column, 1)
    got = WEIGHTS["constexpr_affine_dequantize"](torch.from_numpy(data), 3, torch.from_numpy(column), 1)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    indices, lut = generator.integers(0, 16, (6, 8)).astype(np.uint8), generator.random((3, 1, 16, 1), np.float32)
    want = np.stack([lut[row // 2, 0, indices[row], 0] for row in range(6)])  # a table for two rows
    got = WEIGHTS["constexpr_lut_to_dense"](torch.from_numpy(indices), torch.from_numpy(lut))
    np.testing.assert_array_equal(got, want)


def test_quantize_rounds_to_even_and_clips():
    x = torch.tensor([0.5, 1.5, -0.5, 300.0, -300.0])
    assert WEIGHTS["quantize"](x, 1.0, "int8").tolist() == [0, 2, 0, 127, -128]
    assert WEIGHTS["quantize"](x, 1.0, "uint8", 3).tolist() == [3, 5, 3, 255, 0]
    assert WEIGHTS["dequantize"](torch.tensor([3, 5], dtype=torch.uint8), 0.5, 3).tolist() == [0.0, 1.0]


def test_a_package_that_is_none_is_named(tmp_path):
    import_coremltools()
    (tmp_path / "x.mlpackage").mkdir()
    with pytest.raises(BundleError, match=r"x\.mlpackage cannot be read .*Manifest.json.*; export it again"):
        read_program(tmp_path / "x.mlpackage")


def test_the_page_lists_the_operators():
    text = (Path(__file__).parents[2] / "docs" / "coreml.md").read_text()
    listed = text.split("compares -->")[1].split("<!--")[0].replace("\n", " ")
    assert sorted(word.strip() for word in listed.split(",")) == sorted(OPERATORS)
