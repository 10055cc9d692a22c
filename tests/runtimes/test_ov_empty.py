"""OpenVINO's converter divides by the size of what is expanded: nothing of no elements reaches it."""

import numpy as np
import pytest
import torch

from edgevit.errors import RuntimeRefusal
from edgevit.export.trace import trace
from edgevit.runtimes import runtime
from edgevit.stages import InputSpec

pytest.importorskip("openvino")
TARGET = runtime("openvino")


def protected(x):
    """The indices of no protected tokens, beside others: what a reduced model without class token has."""
    return torch.arange(0).expand(x.shape[0], -1), x.topk(2, 1).indices


class Kept(torch.nn.Module):
    def forward(self, x):
        x = x.flatten(2)[0]
        return x.gather(1, torch.cat(protected(x), 1))


class Multiplied(torch.nn.Module):
    def forward(self, x):
        x = x.flatten(2)[0]
        none = protected(x)[0].float()
        return x + none @ none.T.repeat(1, 16)[:, :16]


def test_no_protected_tokens_are_not_joined_to_others(tmp_path):
    image = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    got = TARGET.open(TARGET.build(trace(Kept(), InputSpec(1, 4, 4)), tmp_path, "fp32"), 1).run(image.numpy())
    assert np.array_equal(got, Kept()(image).numpy())


def test_what_would_end_the_process_is_named(tmp_path):
    with pytest.raises(RuntimeRefusal, match=r"^expand: OpenVINO does not expand .* no elements \[3, 0\]; write"):
        TARGET.build(trace(Multiplied(), InputSpec(1, 4, 4)), tmp_path, "fp32")
    assert list(tmp_path.iterdir()) == []
