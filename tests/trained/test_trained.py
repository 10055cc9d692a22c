"""What every trained architecture promises: shapes, rows that do not mix, exports that agree, keys that are checked."""

import copy
from pathlib import Path

import pytest
import torch

from edgevit.errors import LoadError, UnsupportedModel
from edgevit.export.gate import FORBIDDEN_ATEN, check_program
from edgevit.export.to_onnx import to_onnx
from edgevit.export.trace import trace
from edgevit.load import fill
from edgevit.stages import InputSpec
from edgevit.trained import TRAINED, trained

OUTPUT = dict.fromkeys(TRAINED, (5,)) | {"dtop": (5, 4, 4)}
KERNELS = {"rtol": 1e-5, "atol": 1e-5}  # another batch size takes another matrix kernel
RUNTIME = 1e-4  # ONNX Runtime against eager, relative to the largest output
everywhere = pytest.mark.parametrize("architecture", TRAINED)


@everywhere
def test_logits_have_the_promised_shape_and_depend_on_the_image(tiny, images, architecture):
    module = tiny(architecture)
    assert not module.training
    with torch.no_grad():
        logits = module(images(architecture, 2))
    assert logits.shape == (2, *OUTPUT[architecture])
    assert bool(torch.isfinite(logits).all())
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@everywhere
def test_images_of_a_batch_are_decided_one_by_one(tiny, images, architecture):
    module, batch = tiny(architecture), images(architecture, 4)
    with torch.no_grad():
        alone = torch.cat([module(image.unsqueeze(0)) for image in batch])
        torch.testing.assert_close(module(batch), alone, **KERNELS)


@pytest.fixture(scope="module")
def graphs(tiny):
    """Factory: the program of an architecture for one batch size, traced once."""
    traced = {}

    def get(architecture, shape):
        if (architecture, shape) not in traced:
            traced[architecture, shape] = trace(tiny(architecture), InputSpec(shape[0], *shape[2:]))
        return traced[architecture, shape]

    return get


@everywhere
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_traced_program_is_static_and_equals_the_module(tiny, images, graphs, architecture, batch):
    x = images(architecture, batch)
    program = graphs(architecture, tuple(x.shape)).program
    check_program(program)
    used = {str(n.target).removeprefix("aten.").split(".")[0] for n in program.graph.nodes}
    table = {"index"} if architecture == "stvit" else set()  # Swin's bias table, at constant places
    assert not used & ({*FORBIDDEN_ATEN, "sort", "argsort", "index", "gather"} - table)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), tiny(architecture)(x), **KERNELS)


@pytest.mark.slow
@everywhere
def test_onnx_runtime_agrees(tiny, images, graphs, architecture, tmp_path):
    import onnxruntime

    x = images(architecture, 1)
    to_onnx(graphs(architecture, tuple(x.shape)), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"images": x.numpy()})
    with torch.no_grad():
        want = tiny(architecture)(x)
    assert (torch.from_numpy(got) - want).abs().max() <= RUNTIME * want.abs().max()


@everywhere
def test_its_own_state_dict_fills_another_one_strictly(tiny, images, architecture):
    module = tiny(architecture)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        other.load_state_dict(module.state_dict())
        x = images(architecture, 1)
        assert torch.equal(other(x), module(x))


@everywhere
def test_a_state_dict_without_the_prefix_is_the_references_spelling(tiny, architecture):
    module = tiny(architecture)
    own = module.state_dict()
    theirs = {key.removeprefix("backbone."): value for key, value in own.items()}
    for old, new in module.renames.items():
        theirs = {old + k.removeprefix(new) if k.startswith(new) else k: v for k, v in theirs.items()}
    assert set(theirs) != set(own)
    if architecture != "stvit":  # Microsoft's Swin numbers its downsampling differently: test_stvit.py
        assert set(module.own_keys(theirs)) == set(own)
    assert module.own_keys(own) == own


@everywhere
def test_a_checkpoint_with_a_key_too_few_or_too_many_is_refused(tiny, architecture):
    module = tiny(architecture)
    state = dict(module.state_dict())
    missing = list(state)[-1]
    state.pop(missing)
    with pytest.raises(RuntimeError, match=missing.replace(".", r"\.")):
        module.load_state_dict(state)
    with pytest.raises(LoadError, match=f"1 keys missing .{missing}"):
        fill(module, state, Path("wrong.pt"), architecture, fit_positions=False)
    with pytest.raises(RuntimeError, match=r"backbone\.surplus"):
        module.load_state_dict({**module.state_dict(), "backbone.surplus": torch.zeros(1)})


@everywhere
def test_a_checkpoint_of_another_width_is_refused(tiny, architecture):
    state = dict(tiny(architecture).state_dict())
    last = list(state)[-1]
    state[last] = torch.zeros(3, *state[last].shape)
    with pytest.raises(RuntimeError, match="size mismatch"):
        tiny(architecture).load_state_dict(state)


@everywhere
def test_tokens_are_python_ints_that_never_grow_within_a_reduction(tiny, architecture):
    tokens = tiny(architecture).tokens
    assert all(type(count) is int for count in tokens)
    if architecture not in ("stvit", "lookupvit"):
        assert list(tokens) == sorted(tokens, reverse=True)
        assert tokens[-1] < tokens[0]


@everywhere
def test_an_unknown_backbone_is_named(architecture):
    with pytest.raises(LoadError, match="timm has no model 'vit_tinny"):
        trained(architecture)("vit_tinny_patch16_224")


@everywhere
def test_a_backbone_of_another_family_is_refused(architecture):
    other = "vit_tiny_patch16_224" if architecture == "stvit" else "resnet18"
    with pytest.raises(LoadError, match=r"this architecture needs timm's|cannot be built"):
        trained(architecture)(other)


@pytest.mark.parametrize("architecture", [name for name in TRAINED if name != "stvit"])
def test_post_norm_blocks_are_refused(tiny, architecture):
    from timm.models.vision_transformer import ResPostBlock

    options = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "block_fn": ResPostBlock}
    with pytest.raises((LoadError, UnsupportedModel), match="ResPostBlock"):
        tiny(architecture, options=options)


def test_an_unknown_architecture_is_named_with_a_hint():
    with pytest.raises(LoadError, match=r"'dynamicvitt' \(did you mean dynamicvit\?\); known: dynamicvit, sit"):
        trained("dynamicvitt")


WRONG = [
    ("dynamicvit", {"keep": 70}, "keep=70 must be above 0 and at most 1"),
    ("dynamicvit", {"blocks": (3, 2)}, "must rise, got"),
    ("dynamicvit", {"blocks": (4,)}, "count from 1 to 3"),
    ("dynamicvit", {"keep": 0.1}, "leaves none of 16 patches after 3 stages"),
    ("sit", {"stages": ()}, r"stages=\[\] must be blocks per stage, 3 in all"),
    ("sit", {"stages": (1, 1)}, "3 in all"),
    ("sit", {"keep": 1.0}, "below 1"),
    ("sit", {"keep": 0.1}, "leaves none of 16 patches"),
    ("stvit", {"semantic": 5}, "semantic=5 must be 1 to 4"),
    ("lookupvit", {"compressed": (5, 4)}, r"compressed=\(5, 4\) must be a grid of at most \(4, 4\)"),
    ("dtem", {"r": -1}, "r=-1 must be"),
    ("dtem", {"blocks": (0, 1)}, "count from 1 to 3"),
    ("dtop", {"budgets": (7, 12)}, r"budgets=\[7, 12\] must be one per stage \[1, 2\]"),
    ("dtop", {"budgets": (17, 1)}, "none above the one before or 16"),
    ("dtop", {"stages": (1, 3)}, "count from 1 to 2"),
    ("dtop", {"threshold": 2.0}, "threshold=2 must be 0 to 1"),
    ("dtop", {"context": 0}, "context=0 at least 1"),
]


@pytest.mark.parametrize(("architecture", "settings", "text"), WRONG)
def test_a_setting_that_cannot_be_is_refused(tiny, architecture, settings, text):
    with pytest.raises(LoadError, match=text):
        tiny(architecture, **settings)
