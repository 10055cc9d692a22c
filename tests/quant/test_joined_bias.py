"""BEiT and EVA join the biases of queries, keys and values in every forward: passes and quantization must see them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgevit.export.rewrite import PASSES, rewrite
from edgevit.export.trace import trace
from edgevit.quant.apply import quantize
from edgevit.quant.layers import find
from edgevit.quant.scheme import QuantScheme
from edgevit.stages import InputSpec

INPUTS = InputSpec(1, 32, 32)


@pytest.fixture(scope="module")
def beit():
    """One block whose query and value biases are large: without them the outputs are others."""
    models = pytest.importorskip("timm.models.beit")
    model = models.Beit(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=7)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 1.0 if name.endswith(("q_bias", "v_bias")) else 0.2, generator=generator)
    return trace(model.eval(), INPUTS)


def test_every_rewrite_keeps_the_joined_bias(beit):
    module = beit.program.module()
    passes = [name for name in PASSES if name not in ("attention_by_head", "drop_batch_axis")]  # forms, not for int8
    done = rewrite(module, INPUTS, passes)  # compares outputs before and after
    assert {"split_qkv", "fold_attention_scale", "fold_norm_affine"} <= set(done)


def test_quantization_keeps_the_joined_bias(beit):
    images = [np.random.default_rng(i).standard_normal(INPUTS.shape).astype(np.float32) for i in range(6)]
    quantized = quantize(beit, QuantScheme(), (), images, len(images))
    assert not [r for r in quantized.kept_float if "bias" in r.reason]
    image = torch.from_numpy(images[0])
    with torch.no_grad():
        want, got = beit.program.module()(image), quantized.program.module()(image)
    assert float((got - want).abs().max()) < 0.1 * float(want.abs().max())  # int8 noise; a lost bias moves it all


def test_a_bias_made_from_the_input_keeps_its_layer_in_float():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)))

        def forward(self, x):
            return functional.linear(x[:, 0], self.weight, x[0, 1, 0, :4])

    groups, refused = find(trace(Shifted().eval(), INPUTS).program.module())
    assert not groups
    assert [r.reason for r in refused] == ["its bias is computed, not a constant"]
