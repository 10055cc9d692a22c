"""Small timm Vision Transformers in which every parameter matters."""

import pytest
import torch


def build_vit(cls=None, seed=0, **options):
    """A 32-pixel, 16-patch model. Gains and LayerScales are in [0.2, 0.8], so a part that is left out shows."""
    if cls is None:
        from timm.models.vision_transformer import VisionTransformer as cls
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}
    return randomized(cls(**{**sizes, **options}), seed)


def randomized(model, seed=0):
    """Fill all parameters, tokens and position embeddings included; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and ("gamma" in name or "norm" in name):
                parameter.uniform_(0.2, 0.8, generator=generator)
            elif parameter.ndim == 1 or any(word in name for word in ("token", "pos_embed", "bias_table")):
                parameter.normal_(0, 0.5, generator=generator)
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def vit():
    """Factory: `vit(cls=None, seed=0, **options of timm's VisionTransformer)`."""
    pytest.importorskip("timm")
    return build_vit


@pytest.fixture(scope="session")
def randomize():
    """Factory: `randomize(model, seed=0)`, every parameter filled so that it matters."""
    return randomized


def relative(got, want):
    """Largest difference, as a share of the largest expected value."""
    return float((got - want).abs().max() / want.abs().max())


def images_of(parts, count=2):
    """Random images of a model's size."""
    return torch.rand(count, 3, *parts.image_size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def parts_equal_whole(model):
    """Parts without reduction, or the unfused attention, compute what the model does; returns the parts."""
    from edgevit.adapters import adapt
    from edgevit.reduced_vit import dense_parts

    parts = adapt(model)
    images = images_of(parts)
    with torch.no_grad():
        want = model(images)
        assert relative(dense_parts(parts)(images), want) < 1e-5  # same sums; fused kernels differ in the last bits
        assert relative(model(images.flip(0)), want) > 1e-2  # the model reads its input, so equality means something
    return parts


def one_pair_merges(model):
    """Parts equal the whole, and merging one pair of tokens in each stage keeps the output's shape, all finite."""
    from edgevit.reduce import reduce
    from edgevit.tokens.schedule import parse_schedule

    parts = parts_equal_whole(model)
    images = images_of(parts)
    with torch.no_grad():
        got = reduce(parts, parse_schedule("tome:r=1")).module(images)
        assert got.shape == model(images).shape
    assert torch.isfinite(got).all()


def counts(model, spec):
    """Run a schedule on two images: right counts, finite outputs of the right shape, another result; returns it."""
    from edgevit.adapters import adapt
    from edgevit.reduce import reduce
    from edgevit.tokens.schedule import parse_schedule

    reduced = reduce(adapt(model), parse_schedule(spec))
    images = images_of(adapt(model))
    with torch.no_grad():
        got, plans = reduced.module.run(images)
        want = model(images)
        alone = torch.cat([reduced.module(image) for image in images.split(1)])
    made = [plan.slots().max().item() + 1 for plan in plans if plan]
    assert made == [n for n, plan in zip(reduced.tokens, plans, strict=True) if plan]
    assert torch.isfinite(got).all()
    assert got.shape == want.shape
    assert relative(got, want) > 1e-4  # it did reduce
    assert relative(alone, got) < 1e-5  # each image is decided alone
    return reduced


def separate_parts_agree(parts):
    """`query_keys` and `values` give what `project` gives, and the explicit attention what the fused one does."""
    from edgevit.tokens.protocol import Tokens

    with torch.no_grad():
        x = parts.stem(images_of(parts))
        count = x.shape[1]
        places = torch.stack([torch.arange(count).flip(0), torch.arange(count)])  # positions that differ by image
        for tokens in (Tokens(), Tokens(place=places)):
            for block in parts.blocks:
                tap, split = block.project(x, tokens), block.query_keys(x, tokens)
                for got, want in ((split.q, tap.q), (split.k, tap.k), (block.values(x), tap.v)):
                    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)  # one product in parts
                assert (split.bias is None) == (tap.bias is None)
                fused, explicit = block.attend(tap, False)[0], block.attend(tap, True)
                torch.testing.assert_close(fused, explicit[0], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(explicit[1].sum(-1), torch.ones(explicit[1].shape[:3]))
                late = block.finish(x, fused, tap._replace(gate=None))
                torch.testing.assert_close(block.finish(x, fused, tap), late, rtol=1e-5, atol=1e-5)


def costs_are_counted(parts, spec="tome:r=3"):
    """What torch counts in the reduced model without its reducers is what the schedule was told, to the last unit."""
    from edgevit.flops import flop_counter
    from edgevit.reduce import reduce
    from edgevit.tokens.schedule import parse_schedule

    reduced = reduce(parts, parse_schedule(spec))
    with torch.enable_grad(), flop_counter() as counter:
        reduced.module(images_of(parts, 1))
    flops = counter.get_flop_counts()
    moving = sum(sum(made.values()) for name, made in flops.items() if name.endswith(".reducer"))
    assert moving > 0
    assert (counter.get_total_flops() - moving) // 2 == reduced.reduced_macs
    assert reduced.reduced_macs < reduced.dense_macs


def follows_reference(parts, spec, attention):
    """A reduced run equals a run whose `attention(block, x, place, size)` looks positions up one by one.

    place: for each image the original position of each token, as Python lists. Returns nothing.
    """
    from edgevit.reduce import reduce
    from edgevit.stages import Tap
    from edgevit.tokens.schedule import parse_schedule

    reduced = reduce(parts, parse_schedule(spec)).module
    images = images_of(parts)
    with torch.no_grad():
        got, plans = reduced.run(images)
        x, size = parts.stem(images), None
        place = [list(range(x.shape[1])) for _ in images]
        for number, (block, plan) in enumerate(zip(parts.blocks, plans, strict=True)):
            attended = attention(number, block, x, place, size)
            x = block.finish(x, attended, Tap(attended, attended, attended, 1.0))
            if plan:
                x, size = plan.apply(x, size)
                place = [[old[s] for s in row] for old, row in zip(place, plan.source().tolist(), strict=True)]
            x = block.feed_forward(x)
        assert relative(got, parts.head(x, size)) < 1e-5  # float32 sums in another order
        assert any(row != sorted(row) for row in place)  # tokens did change their order


def traces(parts, spec, batch):
    """Trace a reduced model; the static gate is part of it. Returns the module and the graph."""
    from edgevit.export.trace import trace
    from edgevit.reduce import reduce
    from edgevit.stages import InputSpec
    from edgevit.tokens.schedule import parse_schedule

    module = reduce(parts, parse_schedule(spec)).module
    graph = trace(module, InputSpec(batch, *parts.image_size))
    images = images_of(parts, batch)
    with torch.no_grad():
        assert relative(graph.program.module()(images), module(images)) < 1e-5
    return module, graph


def runs_in_onnx(parts, spec, batch, folder):
    """ONNX Runtime gives what eager gives."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    from edgevit.export.to_onnx import to_onnx

    module, graph = traces(parts, spec, batch)
    to_onnx(graph, folder / "model.onnx")
    images = images_of(parts, batch)
    session = runtime.InferenceSession(str(folder / "model.onnx"))
    got = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    with torch.no_grad():
        assert relative(got, module(images)) < 1e-4  # another library's kernels, sums in another order


def repeated_image(parts, patch=8):
    """An image whose patches are a quarter as many, each four times in a row: twins meet in every pairing of two."""
    rows, columns = parts.grid
    tiles = torch.randn(rows * columns // 4, 3, patch, patch, generator=torch.Generator().manual_seed(2))
    grid = torch.stack([tiles[i // 4] for i in range(rows * columns)]).reshape(rows, columns, 3, patch, patch)
    return grid.permute(2, 0, 3, 1, 4).reshape(1, 3, rows * patch, columns * patch)


def merging_twins_changes_nothing(parts, spec):
    """Identical tokens merge into one that counts as often as they did: attention, pooling and output stay."""
    from edgevit.reduce import reduce
    from edgevit.tokens.schedule import parse_schedule

    image = repeated_image(parts)
    off = spec.replace("@", ",prop=off@") if "@" in spec else spec + ",prop=off"
    with torch.no_grad():
        want = parts.module(image)
        assert relative(reduce(parts, parse_schedule(spec)).module(image), want) < 1e-5
        assert relative(reduce(parts, parse_schedule(off)).module(image), want) > 1e-4  # the equality is earned


@pytest.fixture(scope="module")
def parts_of(request, randomize, check):
    """Factory: one of the test file's VARIANTS of its MODEL, taken apart and proven once."""
    from functools import cache

    file = request.module
    return cache(lambda name: check.parts_equal_whole(randomize(file.MODEL(**{**file.SIZES, **file.VARIANTS[name]}))))


@pytest.fixture(scope="session")
def check():
    """The checks that adapters share, by name."""
    from types import SimpleNamespace

    shared = (
        relative, images_of, parts_equal_whole, one_pair_merges, counts, separate_parts_agree, costs_are_counted,
        follows_reference, traces, runs_in_onnx, merging_twins_changes_nothing,
    )  # fmt: skip
    return SimpleNamespace(**{function.__name__: function for function in shared})
