"""Two rounds that take turns: real runners, and small programs that say when they ran."""

import json
import os
import sys
import textwrap

import pytest

from edgevit.devices import bench, config
from edgevit.devices.lock import session_lock
from edgevit.devices.pair import run_pair
from edgevit.devices.plan import BenchPlan, Job
from edgevit.errors import MeasureError
from tests.devices.test_bench import own_temp  # noqa: F401 (a lock of these tests' own)
from tests.devices.test_runners import onnx_file  # noqa: F401 (a fixture)

PLAN = BenchPlan(rounds=2, warmup_s=0, min_samples=20, min_seconds=0, max_seconds=5, threads=1, turn=5)
PROGRAM = """
import json, sys, time
job = json.load(open(sys.argv[1]))
samples = []
{first}
while True:
    print("chatter of a runtime")
    print("edgevit: turn", flush=True)
    if sys.stdin.readline() != "go\\n":
        break
    {each}
    for _ in range(job["turn"]):
        samples.append(time.monotonic())
        time.sleep(0.001)
record = {{"job": job, "fake": True, "runtime": "fake", "runtime_version": "0", "samples_ms": samples, "load_ms": 1,
          "first_ms": 1, "peak_memory_bytes": 1, "threads": 1, "warmup": {{"seconds": 0, "stable": True}}}}
json.dump(record, open(job["out"], "w"))
"""


def pair(folder, first="", each="", limit_s=20.0, also="", job=()):
    """Records of two programs; what is given is the second one's, but for `also`, the first one's."""
    runners = [folder / "a.py", folder / "b.py"]
    runners[0].write_text(textwrap.dedent(PROGRAM.format(first=also, each="")))
    runners[1].write_text(textwrap.dedent(PROGRAM.format(first=first, each=each)))
    job = {"turn": 5, "min_samples": 20, "min_seconds": 0, "max_seconds": 9, "options": {}, **dict(job)}
    with session_lock() as lock:
        return run_pair([job, job], runners, folder, ["A", "B"], limit_s, lock)


def test_one_waits_while_the_other_runs(tmp_path):
    a, b = (record["samples_ms"] for record in pair(tmp_path))
    assert len(a) == len(b) == 20
    order = "".join(name for _, name in sorted([(t, "a") for t in a] + [(t, "b") for t in b]))
    assert order == ("aaaaa" + "bbbbb" * 2 + "aaaaa") * 2


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_both_have_the_same_cores_as_many_as_threads_and_the_next_pair_has_others(tmp_path):
    tell = "import os; job['cores'] = sorted(os.sched_getaffinity(0))"
    own = os.sched_getaffinity(0)
    pairs = [pair(tmp_path, tell, also=tell, job={"round": number, "options": {"threads": 1}}) for number in (0, 2)]
    (first, same), (other, _) = [[record["job"]["cores"] for record in found] for found in pairs]
    assert len(first) == 1
    assert first == same != other
    assert os.sched_getaffinity(0) == own


@pytest.mark.parametrize(
    ("where", "what", "match"),
    [
        ("first", "sys.exit('no such engine')", r"^B failed \(exit status 1\): no such engine"),
        ("each", "sys.exit('out of luck')", r"^B failed \(exit status 1\): out of luck"),
        ("each", "import os; os.kill(os.getpid(), 9)", r"^B failed \(killed by SIGKILL; out of memory\?\)"),
        ("first", "sys.exit(0)", "^B ended without a readable record"),
        ("each", "time.sleep(60)", "^B: no answer after 1 s, stopped"),
    ],
)
def test_one_that_fails_is_named_and_both_are_gone(tmp_path, where, what, match):
    with pytest.raises(MeasureError, match=match):
        pair(tmp_path, limit_s=1.0 if "sleep" in what else 20.0, **{where: what})
    said = [p for p in os.listdir("/proc") if p.isdigit() and str(tmp_path).encode() in command(p)]
    assert said == []


def command(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            return stream.read()
    except OSError:
        return b""


@pytest.mark.usefixtures("own_temp")
def test_real_rounds_take_turns(onnx_file):  # noqa: F811
    jobs = [Job(name, "ort", onnx_file, input_shape=(1, 3, 8, 8)) for name in "AB"]
    found = bench.profile([jobs[1]], jobs[0], PLAN)
    assert [(r.bundle, len(r.samples_ms)) for r in found.measurement.rounds] == [(n, 20) for n in "ABBA"]
    summary = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert summary["conditions"]["order"] == "in turns of 5"
    assert summary["conditions"]["plan"]["turn"] == 5
    speed = summary["speedup"]["B"]
    assert speed["blocks"] == 2  # each pair is one
    assert speed["noise_floor"] is not None  # of the odd and the even turns of A


def test_pairs_of_several_bundles_have_blocks_of_their_own(job):
    slots = bench.order([job("B"), job("C")], job("A"), 2, in_turns=True)
    assert "".join(slot.job.bundle for slot in slots) == "ABACBACA"
    assert [slot.side.block for slot in slots] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_what_takes_no_turns_is_refused(job):
    with pytest.raises(MeasureError, match="give --against BUNDLE, or leave --turn out"):
        bench.profile([job("B")], None, PLAN)
    with pytest.raises(MeasureError, match=r"B: runner 'fake' takes no turns \(ort, openvino, executorch do\)"):
        bench.profile([job("B")], job("A"), PLAN)
    device = config.make("board", {"transport": "local", "python": sys.executable, "work": "/nowhere"}, "test")
    with pytest.raises(MeasureError, match="device board: only on this machine"):
        bench.profile([job("B")], job("A"), PLAN, device=device)
    with pytest.raises(MeasureError, match="turn=-1 must be a whole number of 0 or more"):
        BenchPlan(turn=-1)
