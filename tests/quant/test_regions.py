"""Regions and units: a label per rule on tiny modules, label counts on families of timm, invariants on all."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgevit.export.trace import trace
from edgevit.quant.costs import summary
from edgevit.quant.flow import Flow, operator
from edgevit.quant.layers import layer_name
from edgevit.quant.regions import REGIONS, regions, units
from edgevit.stages import InputSpec

STEM, CONV, BRIDGE, TRANSFORMER, RESIDUAL, CORE, GATE, HEAD = REGIONS


def program(module, size=16):
    return trace(module.eval(), InputSpec(1, size, size)).program.module()


def layers(traced):
    """Region by module path."""
    found, flow = regions(traced), Flow(traced)
    return {layer_name(n): label for n, label in found.items() if n in flow.layers}


def labels(traced, name, path=""):
    """Regions of every node with an operator, in order, below a module path."""
    return [label for n, label in regions(traced).items() if operator(n) == name and path in layer_name(n)]


def check_units(traced):
    """They hold every compute node once, in order, and each reads one image-dependent value: its source."""
    flow, found = Flow(traced), units(traced)
    assert [n for unit in found for n in unit.nodes] == flow.nodes
    variable, source = {flow.image, *flow.nodes}, flow.image
    for unit in found:
        inside = set(unit.nodes)
        assert unit.source is source
        assert unit.sink in inside
        assert {n for node in unit.nodes for n in node.all_input_nodes if n in variable} <= inside | {source}
        assert unit.layers
        source = unit.sink
    assert source in traced.graph.output_node().all_input_nodes


class Sum(nn.Module):
    """x + branch(x)."""

    def __init__(self, *branch):
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x):
        return x + self.branch(x)


class Tokens(nn.Module):
    """A map as tokens, and back."""

    def __init__(self, *inner):
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x):
        return self.inner(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


class Attention(nn.Module):
    """Softmax attention of one head, written out."""

    def __init__(self, width, talk=False, activation=None):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.talk = nn.Conv2d(1, 1, 1) if talk else nn.Identity()
        self.activation = activation or nn.Identity()
        self.register_buffer("bias", torch.zeros(1))

    def forward(self, x):
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
        scores = self.talk(q * 0.5 @ k.transpose(-2, -1) + self.bias)
        return self.proj(self.activation((scores.softmax(-1) @ v).squeeze(1)))


class CrossCovariance(Attention):
    """Attention over channels of normalised queries and keys (XCA)."""

    def forward(self, x):
        q, k, v = self.qkv(x).transpose(1, 2).chunk(3, 1)
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        return self.proj(((q @ k.transpose(1, 2)).softmax(-1) @ v).transpose(1, 2))


class LinearAttention(Attention):
    """relu(q) (relu(k)ᵀ v), normalised by relu(q) Σ relu(k)."""

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = q.relu(), k.relu()
        out = q @ (k.transpose(1, 2) @ functional.pad(v, (0, 1), value=1.0))
        return self.proj(out[..., :-1] / (out[..., -1:] + 1e-6))


class Separable(nn.Module):
    """MobileViT v2: one score a token, a weighted sum, its product with the values."""

    def __init__(self, width):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 1 + 2 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).split([1, x.shape[-1], x.shape[-1]], -1)
        return self.out(v.relu() * (k * q.softmax(1)).sum(1, keepdim=True))


class Gate(nn.Module):
    """Squeeze-excite."""

    def __init__(self, width, last=None):
        super().__init__()
        self.fc1, self.fc2, self.last = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1), last or nn.Sigmoid()

    def forward(self, x):
        return x * self.last(self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()))


class Unfold(nn.Module):
    """MobileViT v1: local convolutions, transformer blocks on the positions of 2x2 patches, projection, fusion."""

    def __init__(self, width, *blocks):
        super().__init__()
        self.local, self.inward = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)
        self.blocks = nn.Sequential(*blocks)
        self.outward, self.fusion = nn.Conv2d(width, width, 1), nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, x):
        b, c, h, w = x.shape
        y = self.inward(self.local(x).relu())
        y = y.reshape(b * c * h // 2, 2, w // 2, 2).transpose(1, 2).reshape(b, c, -1, 4).transpose(1, 3)
        y = self.blocks(y.reshape(b * 4, -1, c)).reshape(b, 4, -1, c).transpose(1, 3)
        y = y.reshape(b * c * h // 2, w // 2, 2, 2).transpose(1, 2).reshape(b, c, h, w)
        return self.fusion(torch.cat((x, self.outward(y)), 1))


def block(attention, width=8):
    """Two residual branches of a transformer block."""
    feed = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))
    return nn.Sequential(Sum(nn.LayerNorm(width), attention), Sum(nn.LayerNorm(width), feed))


def net(*middle, width=8):
    """A stem, a convolution, the middle, pooling and a classifier."""
    stem = [
        nn.Conv2d(3, width, 2, 2),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)]
    return nn.Sequential(*stem, *middle, *head)


def test_convolutional_stage():
    traced = program(net(Sum(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())))
    assert layers(traced) == {"0": STEM, "2": CONV, "5.branch.0": CONV, "8": HEAD}
    assert set(labels(traced, "batch_norm") + labels(traced, "add")) == {CONV}
    assert labels(traced, "relu") == [STEM, CONV, CONV]
    assert labels(traced, "adaptive_avg_pool2d") == [HEAD]
    assert [unit.name for unit in units(traced)] == ["0", "2", "5.branch.0", "8"]
    check_units(traced)


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Hardsigmoid()])
def test_gate(last):
    traced = program(net(Sum(nn.Conv2d(8, 8, 3, padding=1), Gate(8, last), nn.GELU())))
    assert layers(traced)["5.branch.1.fc1"] == layers(traced)["5.branch.1.fc2"] == GATE
    for name in ("mean", "mul", operator_of(last)):
        assert labels(traced, name) == [GATE]
    assert labels(traced, "gelu") == labels(traced, "add") == [CONV]  # behind a gate, a map is what it was
    check_units(traced)


def operator_of(activation):
    return type(activation).__name__.lower()


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GLU(1)])
def test_products_that_pool_nothing_are_no_gates(activation):
    wide = nn.Conv2d(8, 16 if isinstance(activation, nn.GLU) else 8, 1)
    assert GATE not in regions(program(net(Sum(wide, activation)))).values()


def test_transformer_block():
    traced = program(net(Tokens(block(Attention(8)))))
    found = layers(traced)
    assert [found[n] for n in found if "inner" in n] == [TRANSFORMER] * 4
    assert labels(traced, "layer_norm") == [RESIDUAL] * 2
    assert labels(traced, "add") == [CORE, RESIDUAL, RESIDUAL]  # the scores' bias, two of the stream
    assert set(labels(traced, "matmul") + labels(traced, "softmax") + labels(traced, "mul")) == {CORE}
    assert labels(traced, "gelu") == [TRANSFORMER]
    assert found["2"] == BRIDGE  # the convolution in front of the first attention
    assert [unit.region for unit in units(traced)] == [STEM, BRIDGE, TRANSFORMER, HEAD]
    assert units(traced)[1].name == "2..5.inner.0.0.branch.1.proj"  # one unit with the attention behind it
    check_units(traced)


def test_activation_behind_attention_and_talking_head():
    traced = program(net(Tokens(block(Attention(8, talk=True, activation=nn.Hardswish())))))
    assert [label for name, label in layers(traced).items() if "talk" in name] == [CORE]
    assert labels(traced, "hardswish") == [TRANSFORMER]


@pytest.mark.parametrize(
    ("attention", "operators"),
    [
        (CrossCovariance, ("linalg_vector_norm", "div", "matmul", "softmax")),
        (LinearAttention, ("relu", "pad", "matmul", "div")),
        (Separable, ("softmax", "mul", "sum", "relu")),
    ],
)
def test_other_attention(attention, operators):
    traced = program(net(Tokens(block(attention(8)))))
    for name in operators:
        assert set(labels(traced, name, "inner")) == {CORE}
    assert list(layers(traced).values()).count(TRANSFORMER) == 4
    check_units(traced)


def test_unfold_and_fold():
    shrink = nn.Conv2d(8, 8, 3, 2, 1)
    traced = program(net(shrink, Unfold(8, block(Attention(8)), block(Attention(8))), nn.Conv2d(8, 8, 3)), 32)
    found = layers(traced)
    assert {found[f"6.{n}"] for n in ("local", "inward", "outward", "fusion")} == {BRIDGE}
    assert found["2"] == found["5"] == found["7"] == CONV
    assert list(found.values()).count(TRANSFORMER) == 8
    assert [unit.region for unit in units(traced)] == [STEM, CONV, CONV, BRIDGE, BRIDGE, CONV, HEAD]
    check_units(traced)


def test_depthwise_feed_forward_belongs_to_a_stream_with_attention():
    def feed():
        return Sum(nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 1))

    traced = program(net(feed(), feed(), Sum(Tokens(Attention(8))), feed(), Sum(nn.Conv2d(8, 8, 3, padding=1))))
    found = layers(traced)
    assert [found[f"5.branch.{i}"] for i in range(3)] == [CONV] * 3
    assert [found[f"6.branch.{i}"] for i in range(3)] == [BRIDGE] * 3  # the block that ends where attention begins
    assert [found[f"8.branch.{i}"] for i in range(3)] == [TRANSFORMER] * 3
    assert found["9.branch.0"] == BRIDGE  # a dense convolution that reads the stream
    assert labels(traced, "add") == [CONV, BRIDGE, CORE, *[RESIDUAL] * 3]


def test_units_one_after_another_give_the_programs_output():
    traced = program(net(Sum(nn.Conv2d(8, 8, 3, padding=1), Gate(8)), Tokens(block(Attention(8)))))
    image = torch.rand(1, 3, 16, 16)
    tensors = {**dict(traced.named_parameters()), **dict(traced.named_buffers())}
    constants = {n: tensors[n.target] for n in traced.graph.nodes if n.op == "get_attr"}
    value = image
    for unit in units(traced):
        known = {unit.source: value.clone(), **constants}
        for node in unit.nodes:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
        value = known[unit.sink]
    torch.testing.assert_close(value, traced(image))


@pytest.mark.parametrize("schedule", ["tome:r=3", "evit:keep=0.5@1,2"])
def test_reducers_count_as_attention(traced, schedule):
    module = traced(schedule).program.module()
    found = layers(module)
    assert Counter(found.values()) == {STEM: 1, TRANSFORMER: 8, HEAD: 1}
    assert set(labels(module, "topk")) == {CORE}
    check_units(module)


def test_summary(traced):
    found = summary(traced("none").program.module())
    assert [row["region"] for row in found["layers"]].count(TRANSFORMER) == 8
    assert sum(row["macs_share"] for row in found["summary"].values()) == pytest.approx(1)
    assert found["summary"][TRANSFORMER]["layers"] == 8
    assert found["summary"][CORE]["macs_share"] > 0
    assert found["units"][found["layers"][-1]["unit"]]["region"] == HEAD


SLOW = pytest.mark.slow
FAMILIES = [  # timm name, image size, layers per region: stem, conv, bridge, transformer, attention-core, gate, head
    ("vit_tiny_patch16_224", 224, (1, 0, 0, 48, 0, 0, 1)),
    ("mobilevit_xxs", 64, (1, 22, 12, 36, 0, 0, 1)),
    ("mobilevitv2_050", 64, (1, 18, 9, 36, 0, 0, 1)),
    ("efficientformer_l1", 224, (1, 30, 2, 4, 0, 0, 2)),
    pytest.param("efficientformerv2_s0", 224, (1, 24, 5, 45, 8, 0, 2), marks=SLOW),
    pytest.param("fastvit_t8", 64, (2, 64, 0, 0, 0, 2, 1), marks=SLOW),
    pytest.param("fastvit_sa12", 64, (2, 62, 3, 10, 0, 2, 1), marks=SLOW),
    pytest.param("fastvit_mci0", 64, (2, 102, 3, 10, 0, 6, 1), marks=SLOW),
    ("efficientvit_b0", 64, (1, 15, 6, 28, 0, 0, 2)),
    pytest.param("efficientvit_m0", 224, (1, 16, 8, 87, 0, 4, 1), marks=SLOW),
    pytest.param("levit_128s", 224, (1, 2, 1, 46, 0, 0, 2), marks=SLOW),
    pytest.param("tiny_vit_5m_224", 224, (1, 8, 8, 50, 0, 0, 1), marks=SLOW),
    pytest.param("shvit_s1", 224, (1, 23, 3, 46, 0, 4, 1), marks=SLOW),
    pytest.param("nextvit_small", 64, (1, 69, 15, 24, 0, 0, 1), marks=SLOW),
    ("edgenext_xx_small", 64, (1, 19, 17, 12, 0, 0, 1)),
    pytest.param("mobilenetv4_hybrid_medium", 64, (1, 42, 8, 68, 0, 0, 2), marks=SLOW),
    pytest.param("repvit_m0_9", 64, (1, 105, 0, 0, 0, 20, 2), marks=SLOW),
    pytest.param("coatnet_nano_rw_224", 224, (1, 20, 5, 36, 0, 14, 1), marks=SLOW),
    pytest.param("maxvit_tiny_rw_224", 224, (1, 15, 22, 88, 0, 22, 1), marks=SLOW),
    ("swiftformer_xs", 224, (1, 37, 15, 24, 0, 0, 2)),
    ("pit_ti_224", 224, (1, 0, 2, 50, 0, 0, 1)),
    pytest.param("cait_xxs24_224", 224, (1, 0, 0, 108, 48, 0, 1), marks=SLOW),
    pytest.param("davit_tiny", 224, (1, 0, 7, 68, 0, 0, 1), marks=SLOW),
    ("visformer_tiny", 224, (1, 22, 2, 32, 0, 0, 1)),
    ("resnet18", 64, (1, 19, 0, 0, 0, 0, 1)),
    ("poolformer_s12", 64, (1, 27, 0, 0, 0, 0, 1)),
    pytest.param("swin_tiny_patch4_window7_224", 224, (1, 0, 0, 51, 0, 0, 1), marks=SLOW),
    pytest.param("eva02_tiny_patch14_224", 224, (1, 0, 0, 48, 0, 0, 0), marks=SLOW),
]  # fmt: skip


@pytest.mark.parametrize(("name", "size", "expected"), FAMILIES)
def test_family(name, size, expected):
    timm = pytest.importorskip("timm")
    traced = program(timm.create_model(name), size)
    found = regions(traced)
    assert list(found) == Flow(traced).nodes
    counts = Counter(found[n] for n in Flow(traced).layers)
    without_adds = [region for region in REGIONS if region != RESIDUAL]
    assert dict(zip(without_adds, expected, strict=True)) == {region: counts[region] for region in without_adds}
    assert (CORE in found.values()) == (RESIDUAL in found.values()) == (TRANSFORMER in found.values())
    check_units(traced)
    if name == "vit_tiny_patch16_224":
        assert labels(traced, "add") == [STEM, *[RESIDUAL] * 24]
        assert len(units(traced)) == 26  # the stem, two a block, the head
    if name == "efficientvit_b0":  # in older traces of the autocast region the division is inside it
        assert set(labels(traced, "div") + labels(traced, "wrap_with_autocast")) == {CORE}
