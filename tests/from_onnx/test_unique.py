"""Files that keep the unique ones of drawn tokens: a fixed count of the places that were drawn most often."""

import numpy as np
import pytest
import torch

from edgevit.errors import LoadError
from edgevit.load import load
from tests.from_onnx.reducing import EXPORTERS, SAME, ats, drawn, error, images

slow = pytest.mark.slow


def weighed(score, x):
    """Each patch that was drawn, by how often it was."""
    places, counts = torch.unique(drawn(score), return_counts=True)
    return torch.cat([x[:, :1], x[:, 1:][:, places] * counts[:, None]], dim=1)


def searched(score, x):
    """The draw as a search in a sorted row; the first patch is always among what is drawn."""
    below = (score.cumsum(-1)[:, None] < torch.linspace(0, 1, 12)[None, :, None]).sum(-1).clamp(max=15)
    places = torch.unique(torch.cat([torch.zeros_like(below[:, :1]), below], dim=1))
    return torch.cat([x[:, :1], x[:, 1:][:, places]], dim=1)


def twice(score, x):
    """Drawn again from what was drawn."""
    places = torch.unique(drawn(score))
    score, patches = score[:, places], x[:, 1:][:, places]
    return torch.cat([x[:, :1], patches[:, torch.unique(drawn(score, 7))]], dim=1)


def own_counts(module, step, pixels):
    """How many places the step keeps on this image, at each Unique."""
    vit, found = module.vit, []
    unique = torch.unique

    def noting(*given, **options):
        result = unique(*given, **options)
        found.append(len(result[0] if isinstance(result, tuple) else result))
        return result

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "unique", noting)
        x = vit.blocks[0](vit._pos_embed(vit.patch_embed(pixels)))
        step(module.score(x), x)
    return tuple(found)


STEPS = [
    *(pytest.param(ats, *p.values, id=f"ats-{p.id}", marks=p.marks) for p in EXPORTERS),
    pytest.param(weighed, 17, False, id="weighed-torchscript", marks=slow),
    pytest.param(searched, 17, False, id="searched-torchscript", marks=slow),
    pytest.param(twice, 17, False, id="twice-torchscript", marks=slow),
    pytest.param(twice, 20, True, id="twice-dynamo", marks=slow),
]


@pytest.mark.parametrize(("step", "opset", "dynamo"), STEPS)
def test_unique_is_exact_where_the_count_is_the_image_s_own(reducing, step, opset, dynamo):
    module, path = reducing(step, opset, dynamo)
    pixels = images()
    counts = own_counts(module, step, pixels)
    checkpoint = load(str(path), keep=counts)
    assert error(checkpoint, module, pixels) < SAME
    assert checkpoint.origin["equal"]["max_relative_error"] < SAME
    assert [mask["kept"] for mask in checkpoint.origin["masks"]] == list(counts)


def drawing(samples, places, tail=""):
    """A file whose unique rows are these of four, from an ArgMax over one-hot rows that an image does not change."""
    hot = np.eye(4, dtype=np.float32)[list(samples)]
    numbers = ", ".join(str(int(v)) for v in hot.reshape(-1))
    return f"""
        g (float[1, 3, 4, 4] x) => (float[1, 3, {places}, 4] y)
        <float[{len(samples)}, 4] hot = {{{numbers}}}>
        {{
            n = ReduceMax <keepdims = 0> (x)
            r = Mul(n, n)
            e = Exp(r)
            w = Mul(hot, e)
            i = ArgMax <axis = 1, keepdims = 0> (w)
            {tail or "[here] u = Unique <sorted = 1> (i)"}
            y = Gather <axis = 2> (x, u)
        }}"""


def test_a_smaller_count_drops_what_was_drawn_least_and_then_the_last(onnx_file):
    path = onnx_file(drawing([3, 1, 1, 0, 3, 2], "k"))  # 0 and 2 once, 1 and 3 twice
    image = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    want = {4: [0, 1, 2, 3], 3: [0, 1, 3], 1: [1]}
    for count, rows in want.items():
        checkpoint = load(str(path), keep=(count,))
        torch.testing.assert_close(checkpoint.module(image), image[:, :, rows])
        assert bool(checkpoint.origin["agreement"]["images"]) == (count == 4)  # tokens of other counts are no scores


REFUSALS = [
    ("[here] u = Unique <sorted = 0> (i)", "are not sorted"),
    ("[here] u = Unique <axis = 0, sorted = 1> (i)", "whole slices along an axis"),
    ("[here] v, u = Unique <sorted = 1> (i)", r"output 1 \(the first of each\) is read"),
    ("[here] v, f, u = Unique <sorted = 1> (i)", r"output 2 \(the inverse\) is read"),
    ("[odd] j = Mod(i, i) [here] u = Unique <sorted = 1> (j)", r"its values come from node odd \(Mod\)"),
    ("[odd] j = Add(i, i) [here] u = Unique <sorted = 1> (j)", r"its values come from node odd \(Add\)"),
]


@pytest.mark.parametrize(("tail", "why"), REFUSALS)
def test_what_is_no_drawing_of_places_is_refused_by_name(onnx_file, tail, why):
    path = onnx_file(drawing([3, 1, 1, 0, 3, 2], "k", tail))
    with pytest.raises(LoadError, match=r"node here \(Unique\): .*" + why):
        load(str(path), keep=(2,))
