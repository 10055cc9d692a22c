"""A mask that hides nothing leaves the program; any other stays."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgevit.export.idle_masks import drop_idle_masks
from edgevit.export.trace import trace
from edgevit.stages import InputSpec

SPEC = InputSpec(2, 4, 4)


class Attends(nn.Module):
    """Self-attention of 16 tokens with a mask; `make(x, weight)` builds it."""

    def __init__(self, make, keyword=False):
        super().__init__()
        self.make, self.keyword = make, keyword
        self.weight = nn.Parameter(torch.zeros(16, 16))

    def forward(self, images):
        x = images.flatten(2).transpose(1, 2).unsqueeze(1)  # [B, 1, 16, 3]
        mask = self.make(x, self.weight)
        if self.keyword:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask, scale=0.5)
        return F.scaled_dot_product_attention(x, x, x, mask, scale=0.5)


def masks(program):
    """The mask of each attention, and whether anything is left of what made it."""
    nodes = [n for n in program.graph.nodes if "scaled_dot_product_attention" in str(n.target)]
    names = [str(n.target) for n in program.graph.nodes]
    return [(*n.args, None)[3] or n.kwargs.get("attn_mask") for n in nodes], any("arange" in n for n in names)


IDLE = {
    "all true": lambda x, w: (torch.arange(16) >= 0)[None, None, None, :].expand(2, 1, 16, 16),
    "all zero": lambda x, w: torch.zeros(16, 16),
    "no mask": lambda x, w: None,
}
REAL = {
    "causal": lambda x, w: torch.arange(16)[:, None] >= torch.arange(16)[None, :],
    "a constant bias": lambda x, w: torch.arange(16)[None, :].float(),
    "of the input": lambda x, w: (x[..., :1] * 0).expand(2, 1, 16, 16),
    "a weight that is zero now": lambda x, w: w,
}


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("kind", IDLE)
def test_an_idle_mask_goes_with_all_that_made_it(kind, keyword):
    module = Attends(IDLE[kind], keyword)
    graph = trace(module, SPEC)
    assert masks(graph.program) == ([None], False)
    images = torch.randn(SPEC.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(graph.program.module()(images), module(images), rtol=0, atol=1e-6)  # another kernel


@pytest.mark.parametrize("kind", REAL)
def test_a_mask_that_can_matter_stays(kind):
    module = Attends(REAL[kind])
    graph = trace(module, SPEC)
    assert masks(graph.program)[0] != [None]
    images = torch.randn(SPEC.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(graph.program.module()(images), module(images), rtol=0, atol=1e-6)


def test_it_counts_what_it_dropped():
    program = torch.export.export(Attends(IDLE["all true"]), (torch.zeros(SPEC.shape),))
    assert drop_idle_masks(program) == 1
    assert drop_idle_masks(program) == 0


def test_a_dense_transformers_model_exports_without_the_mask_it_builds_while_traced():
    transformers = pytest.importorskip("transformers")
    from edgevit.adapters.hf import OneTensor

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    model = transformers.ViTForImageClassification(config).eval()
    assert masks(trace(OneTensor(model, "logits"), InputSpec(1, 16, 16)).program) == ([None], False)
