"""The text of a schedule, its JSON form, every way it is refused, and the counts it gives."""

import json
from types import SimpleNamespace

import pytest

from edgevit.errors import ScheduleError
from edgevit.stages import Stage
from edgevit.tokens import METHODS, method
from edgevit.tokens.counting import count_tokens
from edgevit.tokens.macs import blocks_macs
from edgevit.tokens.schedule import TokenSchedule, parse_schedule

BLOCK = SimpleNamespace(macs_per_token=(4 * 64**2, 8 * 64**2), attention_width=64)
BLOCKS = (BLOCK,) * 12
TOKENS, PREFIX, FIXED = 65, 1, 1_000_000


def stages(blocks=BLOCKS, tokens=TOKENS, prefix=PREFIX):
    return (Stage(blocks, prefix, (1, tokens - prefix)),)


def count(spec, blocks=BLOCKS, tokens=TOKENS, prefix=PREFIX):
    return count_tokens(parse_schedule(spec), stages(blocks, tokens, prefix), FIXED)


SPECS = [
    "none",
    "tome:r=8",
    "tome:r=24@3,6,9,11",
    "tome:r=60/40@5,9",
    "tome:r=0",
    "tome:r=8,prop=off",
    "tome:r=8,prop=off@2,4",
    "evit:keep=0.7",
    "evit:keep=0.7@4,7,10",
    "evit:keep=0.9/0.8@4,7",
    "evit:keep=0.123456789",
    "tome:flops=0.65",
    "tome:flops=0.65@5,9",
    "evit:flops=0.333333333",
    "tome:r=1234567",
    "tome:keep=0.8@4,8",
    "tome:r=8,until=10@3",
    "tome:auto,flops=0.65",
    "tome:auto,flops=0.65,points=3,seed=7",
]


@pytest.mark.parametrize("spec", SPECS)
def test_text_round_trips(spec):
    schedule = parse_schedule(spec)
    assert str(schedule) == spec
    assert parse_schedule(str(schedule)) == schedule


@pytest.mark.parametrize("spec", SPECS)
def test_json_round_trips(spec, tmp_path):
    schedule = parse_schedule(spec)
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(schedule.to_dict()))
    assert parse_schedule(str(path)) == schedule


REFUSED = {
    "tme:r=8": r"unknown reduction method 'tme' \(did you mean tome\?\); known: .*tome.*, none",
    "merge": "unknown reduction method 'merge'",
    "": "unknown reduction method ''",
    "tome": "'tome' gives tome no amount; write for example tome:r=",
    "tome:": "'tome:' gives tome no amount",
    "evit": "write for example evit:keep=",
    "tome:r=eight": "'eight' is not a number",
    "tome:r=": "'r=' in 'tome:r=' is not key=value",
    "tome:r=8/": "'' is not a number",
    "tome:r=2.5": r"r=2.5 must be a whole number of tokens",
    "tome:r=-1": r"r=-1 must be a whole number of tokens, 0 or more",
    "tome:r=nan": "'nan' is not a number",
    "tome:r=inf": "'inf' is not a number",
    "evit:keep=nan": "'nan' is not a number",
    "evit:keep=0": r"keep=0 must be above 0 and at most 1 \(0.7 keeps 70 %\)",
    "evit:keep=70": "keep=70 must be above 0 and at most 1",
    "tome:flops=0": "flops=0 is a share of the dense MACs, above 0 and at most 1",
    "tome:flops=65": "flops=65 is a share of the dense MACs",
    "tome:flops=nan": "'nan' is not a number",
    "tome:flops=0.6/0.5@5,9": "flops= takes one number",
    "tome:r=8,flops=0.65": "gives both r= and flops=; give one",
    "tome:flops=0.65,r=8": "gives both flops= and r=; give one",
    "tome:r=8,r=4": "gives both r= and r=; give one",
    "tome:prop=off": "tome needs one of r=, keep=, flops=",
    "tome:r=8,prop=maybe": "prop=maybe: tome takes on or off",
    "tome:r=8,prop=on,prop=off": "gives prop= twice",
    "tome:r=8,prp=off": r"tome has no key 'prp' \(did you mean prop\?\); it has r, keep, flops, prop, until",
    "tome:ratio=0.7": "tome has no key 'ratio'|tome needs one of r=, keep=, flops=",
    "tome:keep=1.5": "keep=1.5 must be above 0 and at most 1",
    "tome:r=8,until=x": "until=x must be the number of a block, from 1",
    "tome:r=8,until=0": "until=0 must be the number of a block, from 1",
    "tome:r=8,points=3": "tome has no key 'points'",
    "tome:r=8@": "'' is not a number",
    "tome:r=8@x": "'x' is not a number",
    "tome:r=8@1.5": r"'1.5' is not a number \(block in 'tome:r=8@1.5'\)",
    "tome:r=8@0": r"blocks count from 1 and must rise, got \[0\]",
    "tome:r=8@-1": "blocks count from 1",
    "tome:r=8@5,3": r"must rise, got \[5, 3\]",
    "tome:r=8@3,3": r"must rise, got \[3, 3\]",
    "tome:r=8/4@5": "2 amounts for 1 blocks; give one, or one per block",
    "tome:r=8/4@5,6,7": "2 amounts for 3 blocks",
    "tome:r=8/4": "2 amounts for 0 blocks",
    "tome:auto": "a searched schedule needs a budget; write tome:auto,flops=0.65",
    "tome:auto,r=8": "a searched schedule needs a budget; write tome:auto,flops=0.65",
    "tome:auto,flops=2": "flops=2 is a share of the dense MACs",
    "tome:auto,flops=0.65@4": "tome:auto searches its blocks: drop @",
    "tome:auto,flops=0.65,points=0": "points=0 must be a whole number, 1 or more",
    "tome:auto,flops=0.65,seed=x": "seed=x must be a whole number, 0 or more",
    "tome:flops=0.65,auto": "'auto' in 'tome:flops=0.65,auto' is not key=value",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_a_wrong_spec_is_refused_with_what_to_do(spec):
    with pytest.raises(ScheduleError, match=REFUSED[spec]):
        parse_schedule(spec)


def test_a_block_beyond_the_depth_is_refused():
    with pytest.raises(ScheduleError, match="the model has 12 blocks, so there is no block 13"):
        count("tome:r=8@3,13")
    with pytest.raises(ScheduleError, match="there is no block 13"):
        count("tome:flops=0.9@13")


BAD_FILES = {
    "[1, 2]": "must hold a JSON object, got list",
    "{": "is not valid JSON",
    '{"method": "tome", "key": "r", "amounts": [8], "block": [1]}': r"unknown keys \['block'\]",
    '{"key": "r", "amounts": [8]}': "schedule is not complete",
    '{"method": "tome", "key": "r"}': "no amount",
    '{"method": "tome", "key": "flops", "amounts": []}': "no amount",
    '{"method": "tome", "key": "r", "amounts": 8}': "schedule is not complete",
    '{"method": "tome", "key": "r", "amounts": "12"}': "schedule is not complete",
    '{"method": "tome", "key": "r", "amounts": [8], "blocks": [2.5]}': "schedule is not complete",
    '{"method": "tome", "key": "r", "amounts": [NaN]}': "nan is not a number that r= can take",
    '{"method": "tome", "key": "keep", "amounts": [8]}': "keep=8 must be above 0",
    '{"method": "tome", "key": "ratio", "amounts": [8]}': "tome needs one of r=, keep=, flops=",
    '{"method": "tom", "key": "r", "amounts": [8]}': "did you mean tome",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_a_wrong_schedule_file_is_refused_with_the_reason(text, tmp_path):
    path = tmp_path / "schedule.json"
    path.write_text(text)
    with pytest.raises(ScheduleError, match=BAD_FILES[text]):
        parse_schedule(str(path))


def test_a_missing_schedule_file_is_named(tmp_path):
    with pytest.raises(ScheduleError, match=r"cannot read schedule file .*absent\.json: No such file"):
        parse_schedule(str(tmp_path / "absent.json"))


def test_none_counts_every_token_through():
    assert count("none").after == (TOKENS,) * 12


def test_amounts_are_paired_with_their_blocks():
    after = count("tome:r=20/10@5,9").after
    assert after == (65,) * 4 + (45,) * 4 + (35,) * 4


def test_a_capped_r_is_noted_with_block_and_number():
    counts = count("tome:r=20")
    assert counts.after[:4] == (45, 25, 13, 7)
    assert counts.notes[0] == "block 3: r=20 is more than can go of its 24 patches; 12 do"
    assert counts.after[-1] == 2
    assert not count("tome:r=4").notes


REDUCING = [  # selectors and trained architectures have no budget to solve for
    name for name in METHODS if not method(name).selector and not method(name).architecture
]


def by_hand(name, share, where, tokens, prefix):
    """Walk the grid from the least reduction on; the first amount that keeps the budget."""
    dense = FIXED + blocks_macs(BLOCKS, tokens, (tokens,) * 12)
    key, grid = method(name).budget_grid(tokens)
    for amount in grid:
        schedule = TokenSchedule(name, key, (amount,), where)
        counts = count_tokens(schedule, stages(BLOCKS, tokens, prefix), FIXED)
        if counts.macs <= share * dense:
            return counts
    return None


@pytest.mark.parametrize("where", [(), (5, 9), (4, 7, 10), (12,)], ids=str)
@pytest.mark.parametrize("share", [1.0, 0.95, 0.8, 0.65, 0.5])
@pytest.mark.parametrize("name", REDUCING)
@pytest.mark.parametrize(("tokens", "prefix"), [(65, 1), (66, 2), (69, 5)])
def test_flops_finds_the_least_reduction_within_the_budget(name, share, where, tokens, prefix):
    asked = TokenSchedule(name, "flops", (share,), where)
    expected = by_hand(name, share, where, tokens, prefix)
    if expected is None:
        with pytest.raises(ScheduleError, match="the most this schedule can cut is flops="):
            count_tokens(asked, stages(BLOCKS, tokens, prefix), FIXED)
        return
    got = count_tokens(asked, stages(BLOCKS, tokens, prefix), FIXED)
    assert got == expected
    assert got.schedule.key != "flops"
    assert got.schedule.blocks == where


@pytest.mark.parametrize("name", REDUCING)
def test_flops_keeps_a_budget_that_a_grid_point_meets_exactly(name):
    key, grid = method(name).budget_grid(TOKENS)
    dense = FIXED + blocks_macs(BLOCKS, TOKENS, (TOKENS,) * 12)
    exact = count_tokens(TokenSchedule(name, key, (grid[3],)), stages(), FIXED)
    share = exact.macs / dense
    got = count_tokens(TokenSchedule(name, "flops", (share,)), stages(), FIXED)
    assert got.macs <= share * dense
    assert got.after == exact.after


@pytest.mark.parametrize("where", ["", "@11,12", "@12", "@6"])
@pytest.mark.parametrize("name", REDUCING)
def test_the_limit_named_for_an_impossible_budget_can_be_typed(name, where):
    with pytest.raises(ScheduleError) as refusal:
        count(f"{name}:flops=0.01{where}")
    limit = str(refusal.value).split("can cut is flops=")[1].split(" ")[0]
    if where == "@12" and method(name).placement == "post":
        assert limit == "1"  # behind the last block there is nothing left to save
        return
    assert count(f"{name}:flops={limit}{where}").after[-1] < TOKENS
