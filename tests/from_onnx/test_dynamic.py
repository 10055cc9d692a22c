"""Files whose token count depends on the image, or that scatter: imported with fixed counts and products instead."""

import importlib.util
import json
from argparse import ArgumentTypeError

import pytest
import torch

from edgevit.adapters import adapt
from edgevit.commands.terminal import token_counts
from edgevit.errors import LoadError, UnsupportedModel
from edgevit.load import load
from tests.from_onnx.reducing import EXPORTERS, SAME, Policied, Reducing, ats, boolean_keep, error, images, tome

slow = pytest.mark.slow


def boolean_keep_of_a_count(score, x):
    """A threshold that always leaves nine."""
    mask = score >= score.topk(9, dim=-1).values[:, -1:]
    return torch.cat([x[:, :1], x[:, 1:][mask].unsqueeze(0)], dim=1)


def places_of_a_mask(score, x):
    """`nonzero`, and an index with it; two conditions."""
    mask = (score > 0.5 * score.mean()) & (score < 4 * score.mean())
    return torch.cat([x[:, :1], x[:, 1:].index_select(1, mask[0].nonzero().squeeze(1))], dim=1)


def assigned(score, x, keep=9):
    """A place for each token, made by a scatter of True."""
    places = score.topk(keep, dim=-1).indices
    mask = torch.zeros_like(score).scatter(1, places, torch.ones_like(score[:, :keep]))
    return torch.cat([x[:, :1], x[:, 1:] * mask.unsqueeze(-1)], dim=1)


def accumulated(score, x):
    """`index_put` that adds: every patch into one of two."""
    groups = (score > score.mean()).long()
    sums = torch.zeros_like(x[0, :2]).index_put((groups[0],), x[0, 1:], accumulate=True)
    return torch.cat([x[:, :1], sums.unsqueeze(0)], dim=1)


SCATTERS = [
    pytest.param(tome, 17, False, id="tome-torchscript"),
    pytest.param(tome, 20, True, id="tome-dynamo", marks=slow),
    pytest.param(assigned, 17, False, id="assigned-torchscript", marks=slow),
    pytest.param(assigned, 20, True, id="assigned-dynamo", marks=slow),
    pytest.param(accumulated, 20, True, id="accumulated-dynamo"),  # torchscript loses the sum of equal places
]


@pytest.mark.parametrize(("step", "opset", "dynamo"), SCATTERS)
def test_scatters_become_products(reducing, step, opset, dynamo):
    module, path = reducing(step, opset, dynamo)
    checkpoint = load(str(path))
    assert error(checkpoint, module, images()) < SAME
    kinds = [one.node.op_type for one in checkpoint.module.graph.children()]
    if step is tome:
        assert kinds.count("ScatterRows") == 2


@pytest.mark.parametrize(("opset", "dynamo"), EXPORTERS)
def test_a_mask_of_a_fixed_count_is_exact(reducing, opset, dynamo):
    module, path = reducing(boolean_keep_of_a_count, opset, dynamo)
    checkpoint = load(str(path), keep=(9,))
    assert error(checkpoint, module, images()) < SAME
    assert checkpoint.origin["masks"][0]["kept"] == 9
    assert checkpoint.origin["masks"][0]["of"] == 16
    assert checkpoint.origin["agreement"]["max_relative_difference"] < SAME


MASKS = [
    pytest.param(boolean_keep, 17, False, id="boolean-torchscript"),
    pytest.param(boolean_keep, 20, True, id="boolean-dynamo", marks=slow),
    pytest.param(places_of_a_mask, 17, False, id="places-torchscript", marks=slow),
    pytest.param(places_of_a_mask, 20, True, id="places-dynamo", marks=slow),
]


@pytest.mark.parametrize(("step", "opset", "dynamo"), MASKS)
def test_a_mask_is_exact_where_the_count_is_the_image_s_own(reducing, step, opset, dynamo):
    module, path = reducing(step, opset, dynamo)
    pixels = images()
    with torch.no_grad():
        vit = module.vit
        score = module.score(vit.blocks[0](vit._pos_embed(vit.patch_embed(pixels))))
    mean = score.mean()
    own = score > mean if step is boolean_keep else (score > 0.5 * mean) & (score < 4 * mean)
    count = int(own.sum())
    assert 1 < count < 16
    checkpoint = load(str(path), keep=(count,))
    assert error(checkpoint, module, pixels) < SAME
    assert error(load(str(path), keep=(count - 1,)), module, pixels) > SAME  # so the count is what makes it so
    assert checkpoint.origin["equal"]["max_relative_error"] < SAME


def test_export_asks_for_the_count_and_takes_it_from_images(cli, refused, reducing, pictures):
    _, path = reducing(boolean_keep, 17, False)
    text = refused("export", path, "--target", "ort", "-o", "out")
    assert "the number of tokens depends on the image, at node" in text
    assert "of 16)" in text
    assert "pass --keep N, or a share below 1, or --calib DATA" in text
    for flags, kept in ((("--keep", "0.5"), 8), (("--calib", pictures.csv), None)):
        result = cli("export", path, "--target", "ort", *flags, "-o", "out", "--json", "--force")
        assert result.code == 0, result.err
        found = json.loads((path.parent / "out" / "manifest.json").read_text())["model"]["onnx"]
        assert kept is None or found["masks"][0]["kept"] == kept
        assert found["agreement"]["images"] > 0


def test_the_counts_of_a_command_line():
    assert token_counts("138,0.5") == (138.0, 0.5)
    for text in ("inf", "nan", "0", "1.5", "-1", "", "9,"):
        with pytest.raises(ArgumentTypeError, match="numbers of tokens or shares below 1"):
            token_counts(text)


@pytest.mark.parametrize(("flag", "text"), [("17", "1 to 16"), ("3,4", "has 1 masks")])
def test_counts_that_do_not_fit(refused, reducing, flag, text):
    _, path = reducing(boolean_keep_of_a_count, 17, False)
    assert text in refused("export", path, "--target", "ort", "--keep", flag, "-o", "o")


def test_keep_is_for_masks(refused, exported, tiny_vit):
    path = exported(tiny_vit(), 17, False)
    assert "selects nothing by a mask" in refused("export", path, "--target", "ort", "--keep", "9", "-o", "o")
    assert "is reduced with --reduce" in refused("export", "demo", "--target", "ort", "--keep", "9", "-o", "o")


def test_compress_along_an_axis(onnx_file):
    path = onnx_file("""
        g (float[1, 3, 4, 4] x) => (float[1, 3, k, 4] y)         {
            m = ReduceMean <axes = [0, 1, 3], keepdims = 0> (x)
            a = ReduceMean <axes = [0], keepdims = 0> (m)
            c = Less(m, a)
            n = Not(c)
            y = Compress <axis = 2> (x, n)
        }""")
    image = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    means = image.mean((0, 1, 3))
    rows = means >= means.mean()
    got = load(str(path), keep=(int(rows.sum()),)).module(image)
    torch.testing.assert_close(got, image[:, :, rows])


def test_a_mask_that_is_no_comparison_is_refused_by_name(onnx_file):
    path = onnx_file("""
        g (float[1, 3, 4, 4] x) => (float[1, 3, k, 4] y)
        {
            m = ReduceMean <axes = [0, 1, 3], keepdims = 0> (x)
            [odd] r = Round(m)
            c = Cast <to = 9> (r)
            [chosen] y = Compress <axis = 2> (x, c)
        }""")
    with pytest.raises(LoadError, match=r"node chosen \(Compress\): its mask comes from node odd \(Round\)"):
        load(str(path), keep=(2,))


def test_a_file_that_merges_already_is_not_taken_apart(reducing):
    """Its second block sees other tokens than its first: no schedule counts that."""
    _, path = reducing(tome, 17, False)
    with pytest.raises(UnsupportedModel, match=r"behind the first attention|was expected"):
        adapt(load(str(path)).module)


@pytest.mark.parametrize(("opset", "dynamo"), EXPORTERS)
def test_a_mask_inside_the_softmax_stays_itself(cli, exported, tiny_vit, opset, dynamo):
    """It is static already: no token goes, and nothing is asked for."""
    module, pixels = Policied(tiny_vit()).eval(), images()
    assert 0 < module.dropped(pixels) < 16
    path = exported(module, opset, dynamo, dynamic=False)
    checkpoint = load(str(path))
    assert error(checkpoint, module, pixels) < SAME
    assert "masks" not in checkpoint.origin
    with pytest.raises(LoadError, match="selects nothing by a mask"):
        load(str(path), keep=(9,))
    assert_exports(cli, path, "ort")


def assert_exports(cli, path, target, *flags):
    """The file's bundle for a target passes the gate of static shapes."""
    result = cli("export", path, "--target", target, *flags, "-o", f"out-{target}", "--json")
    assert result.code == 0, result.err
    assert result.json["checks"]["static_shapes"]
    assert result.json["checks"]["forbidden_ops"] == []


@slow
@pytest.mark.parametrize("kind", ["tome", "boolean keep", "masked softmax", "ats"])
def test_every_kind_comes_out_static_and_builds(cli, exported, tiny_vit, kind):
    """With the count of the image itself; what other counts change is in the manifest."""
    step = {"tome": tome, "boolean keep": boolean_keep, "ats": ats}.get(kind)
    module = (Reducing(tiny_vit(), step) if step else Policied(tiny_vit())).eval()
    pixels, keep = images(), None
    if step in (boolean_keep, ats):
        vit = module.vit
        with torch.no_grad():
            x = vit.blocks[0](vit._pos_embed(vit.patch_embed(pixels)))
            keep = step(module.score(x), x).shape[1] - 1 - (step is boolean_keep)  # the class token, the fused one
    path = exported(module, 17, False, dynamic=False)
    assert error(load(str(path), keep=keep and (keep,)), module, pixels) < SAME
    flags = ("--keep", keep) if keep else ()
    assert_exports(cli, path, "ort", *flags)
    if importlib.util.find_spec("tensorrt_rtx"):
        assert_exports(cli, path, "trt-rtx", *flags)
        assert (path.parent / "out-trt-rtx" / "model.engine").stat().st_size
