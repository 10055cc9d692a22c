"""`until=`: merge, run the blocks between on fewer tokens, and bring every token back."""

import pytest
import torch

from edgevit.adapters import adapt
from edgevit.errors import ScheduleError
from edgevit.reduce import reduce
from edgevit.reduced_vit import restore
from edgevit.stages import Tap
from edgevit.tokens.protocol import Site
from edgevit.tokens.schedule import parse_schedule
from edgevit.tokens.tome import ToMe

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def merge(count, r, seed=0, prefix=1, lowering="gather"):
    keys = torch.randn(2, 1, count, 4, generator=torch.Generator().manual_seed(seed))
    return ToMe.plan(Site(Tap(keys, keys, keys, 1.0), keys[:, 0], None, prefix, count - r, lowering=lowering))


def counts_entering(module):
    """Tokens that enter each block of one run."""
    seen = []
    hooks = [block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1])) for block in module.blocks]
    with torch.no_grad():
        out = module(IMAGES)
    for hook in hooks:
        hook.remove()
    return seen, out


@pytest.mark.parametrize(
    ("spec", "entering", "after"),
    [
        ("tome:r=4,until=3@1", [17, 13, 13, 17, 17], (13, 13, 13, 17, 17)),
        ("tome:r=4,until=3", [17, 13, 9, 17, 17], (13, 9, 5, 17, 17)),
        ("tome:r=4,until=5@2", [17, 17, 13, 13, 13], (17, 13, 13, 13, 13)),
        ("tome:r=4,until=2@1,4", [17, 13, 17, 17, 13], (13, 13, 17, 13, 13)),
    ],
)
def test_all_tokens_enter_the_block_behind_until(tiny_vit, spec, entering, after):
    reduced = reduce(adapt(tiny_vit(depth=5)), parse_schedule(spec))
    seen, out = counts_entering(reduced.module)
    assert seen == entering
    assert reduced.tokens == after
    assert torch.isfinite(out).all()


def test_tokens_come_back_behind_the_last_block_too(tiny_vit):
    whole = reduce(adapt(tiny_vit(depth=3, global_pool="")), parse_schedule("tome:r=4"))
    named = reduce(adapt(tiny_vit(depth=3, global_pool="")), parse_schedule("tome:r=4,until=3"))
    with torch.no_grad():
        assert named.module(IMAGES).shape[1] == 17
        assert torch.equal(named.module(IMAGES), whole.module(IMAGES))  # what such a model asks for anyway


@pytest.mark.parametrize("lowering", ["gather", "matmul"])
def test_untouched_tokens_come_back_as_they_were_and_merged_ones_as_their_group(lowering):
    plan = merge(15, 5, lowering=lowering)
    x = torch.randn(2, 15, 6, generator=torch.Generator().manual_seed(1))
    merged, size = plan.apply(x, None)
    back = restore(merged, [plan], lowering)
    assert back.shape == x.shape
    slots = plan.slots()
    alone = touched = 0
    for image in range(2):
        for token in range(15):
            group = (slots[image] == slots[image, token]).nonzero().flatten().tolist()
            assert torch.equal(back[image, token], merged[image, slots[image, token]])
            torch.testing.assert_close(back[image, token], x[image, group].mean(dim=0), rtol=1e-5, atol=1e-6)
            if len(group) == 1:
                alone += 1
                assert torch.equal(back[image, token], x[image, token])
            else:
                touched += 1
                assert size[image, slots[image, token]] == len(group)
    assert alone > 0
    assert touched >= 2 * (5 + 1)  # in each image every merged token, and at least one that took them in


@pytest.mark.parametrize("lowering", ["gather", "matmul"])
def test_plans_of_several_blocks_compose(lowering):
    plans = [merge(17, 5, 0, lowering=lowering), None, merge(12, 4, 1, lowering=lowering), merge(8, 3, 2)]
    y = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(3))
    back = restore(y, plans, lowering)
    assert back.shape == (2, 17, 6)
    for image in range(2):
        for token in range(17):
            slot = token
            for plan in plans:
                slot = slot if plan is None else int(plan.slots()[image, slot])
            assert torch.equal(back[image, token], y[image, slot])
    one_by_one = y
    for plan in reversed(plans):
        one_by_one = restore(one_by_one, [plan], lowering)
    assert torch.equal(back, one_by_one)


def test_a_plan_that_restores_its_own_way_composes_with_slots():
    class Own:
        """A reduction to one token, given back threefold larger."""

        def restore(self, y):
            return 3 * y.expand(-1, 5, -1)

    outer, inner = merge(8, 3), Own()
    y = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(restore(y, [outer, inner], "gather"), 3 * y.expand(-1, 8, -1))
    index = merge(5, 2).slots()
    rows = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))

    class Doubled:
        def restore(self, y):
            return torch.cat([y, y], dim=1)

    back = restore(rows, [Doubled(), merge(5, 2)], "gather")  # slots first, then its own way
    want = torch.stack([rows[i, index[i]] for i in range(2)])
    assert torch.equal(back, torch.cat([want, want], dim=1))


def test_nothing_to_undo_is_the_stream_itself():
    x = torch.randn(2, 5, 3)
    assert restore(x, [None, None], "gather") is x


def test_a_method_that_drops_tokens_cannot_bring_them_back(tiny_vit):
    with pytest.raises(ScheduleError, match="evit drops tokens for good"):
        reduce(adapt(tiny_vit(depth=3)), parse_schedule("evit:keep=0.7,until=3@1"))
    with pytest.raises(ScheduleError, match="there is no block 4"):
        reduce(adapt(tiny_vit(depth=3)), parse_schedule("tome:r=4,until=4@1"))
    with pytest.raises(ScheduleError, match="must be the number of a block"):
        parse_schedule("tome:r=4,until=end@1")
