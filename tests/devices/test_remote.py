"""Sessions on the loopback board: the whole stack over a real sshd, and every fault that can be injected."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from edgevit.devices import bench, config, remote
from edgevit.devices.agent import Link, LinkLost
from edgevit.devices.bench import BenchPlan
from edgevit.devices.lock import session_lock
from edgevit.devices.tree import File, place_tree, tree_name
from edgevit.errors import MeasureError
from tests.devices.bundles import bundle

QUICK = BenchPlan(rounds=2, warmup_s=0, min_samples=70, min_seconds=0, max_seconds=1, threads=1)


@pytest.fixture
def device(board):
    return config.make("loop", board.table, "test")


@pytest.fixture
def script(script, monkeypatch):
    """Its runner is sent to the device like the others."""
    monkeypatch.setattr(remote, "ALONE", (*remote.ALONE, "made"))
    return script


def left_over(board):
    """What a session left on the device beside its trees."""
    work = board.folder / "work"
    kept = [p for p in work.iterdir() if p.name not in ("trees", "guards")]
    return [*kept, *work.glob("trees/*.part"), *work.glob("guards/*")]


def wait_for(condition, limit_s=60.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_rounds_of_a_device_are_those_of_this_machine(board, device, job):
    a, b = job("A", 4.0), job("B")
    there = bench.profile([b], a, QUICK, device=device)
    assert [r.bundle for r in there.measurement.rounds] == ["A", "B", "B", "A"]
    summary = there.to_json()
    assert summary["device"]["name"] == "loop"
    assert summary["fake"] is True
    here = bench.profile([b], a, QUICK)
    assert [r.samples_ms for r in there.measurement.rounds] == [r.samples_ms for r in here.measurement.rounds]
    assert summary["conditions"]["affinity"] == here.to_json()["conditions"]["affinity"]
    engine = there.records[0]["job"]["engine"]
    assert Path(engine).is_relative_to(board.folder / "work" / "trees")
    assert left_over(board) == []
    before = os.stat(engine)
    bench.profile([b], a, QUICK, device=device)
    assert os.stat(engine).st_ino == before.st_ino  # what is there is not sent again


def test_a_bundle_is_measured_on_the_device(board, tmp_path, monkeypatch, capsys):
    from edgevit import cli

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    words = [f"{key}={value}" for key, value in board.table.items() if key != "transport"]
    assert cli.run(["devices", "add", "loopback-board", "ssh", *words]) == 0
    first = bundle(tmp_path / "one")
    capsys.readouterr()
    status = cli.run(["profile", str(first), "--device", "loopback-board", "--rounds", "1", "--json"])
    assert status == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fake"] is False
    assert found["device"]["name"] == "loopback-board"
    assert found["results"][0]["runtime"] == "onnxruntime"
    assert found["results"][0]["samples"] >= 64
    assert cli.run(["devices", "check", "loopback-board", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["executable"] == sys.executable
    assert found["runtimes"]["onnxruntime"]


def test_an_export_is_gated_by_the_device(board, module_file, tmp_path, monkeypatch, cli):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    config.add("loopback-board", board.table)
    words = ("export", module_file, "--trust-pickle", "--target", "fake", "-o", tmp_path / "out")
    there = ("--device", "loopback-board")
    result = cli(*words, "--min-speedup", "0.5", *there, "--json")
    assert (result.code, result.json["gate"]["device"]) == (0, "loopback-board"), result.err
    assert 0.9 < result.json["gate"]["speedup"]["ratio"] < 1.1  # the fake runner's jitter is 2 %
    assert [p.name for p in (board.folder / "work" / "trees").iterdir()]  # both engines were there
    result = cli(*words, "--force", "--min-speedup", "3", *there)
    assert (result.code, "--min-speedup asks 3" in result.err) == (3, True)
    for more, text in ((there, "is where --min-speedup measures"), (("--min-speedup", "1", "--device", "x"), "'x'")):
        result = cli(*words, "--force", *more)
        assert (result.code, text in result.err) == (1, True), result.err


def test_an_unknown_device_names_those_there_are(tmp_path, monkeypatch, capsys):
    from edgevit import cli

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert cli.run(["profile", str(bundle(tmp_path / "one")), "--device", "orin"]) == 1
    assert "`edgevit devices add orin` makes one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", r"killed by SIGKILL; out of memory\?"),
        (
            "import sys\nsys.exit('the reason')",
            r"^B: runner 'made', round 1 of 2 failed \(exit status 1\): the reason$",
        ),
        ("", "without a readable record"),
    ],
)
def test_a_failing_runner_reads_as_it_does_here(board, device, job, script, text, match):
    with pytest.raises(MeasureError, match=match):
        bench.profile([job("B", runner=script(text))], None, QUICK, device=device)
    assert left_over(board) == []


@pytest.mark.slow
def test_a_runner_that_does_not_end_is_stopped_there(board, device, job, script, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "LOAD_LIMIT_S", 1.0)
    made = script(f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")
    with pytest.raises(MeasureError, match="no result after 3 s, stopped"):
        bench.profile([job(runner=made)], None, QUICK, device=device)
    assert gone(int((tmp_path / "pid").read_text() or 0))


def hanging(tmp_path):
    """A runner that tells its number and hangs."""
    part, pid = tmp_path / "pid.part", tmp_path / "pid"
    return pid, (
        f"import os, time\nopen({str(part)!r}, 'w').write(str(os.getpid()))\nos.rename({str(part)!r}, {str(pid)!r})\n"
        "time.sleep(600)\n"
    )


def test_a_link_that_drops_is_one_line_and_the_device_gives_itself_back(board, device, job, script, tmp_path):
    pid, text = hanging(tmp_path)

    def cut():
        wait_for(pid.exists)
        board.drop_links()

    cutter = threading.Thread(target=cut)
    cutter.start()
    with pytest.raises(MeasureError, match=r"^B: .*round 1 of 2: the link to device loop broke \(.*profile again$"):
        bench.profile([job("B", runner=script(text))], None, QUICK, device=device)
    cutter.join()
    wait_for(lambda: gone(int(pid.read_text())))
    wait_for(lambda: left_over(board) == [])
    bench.profile([job()], None, QUICK, device=device)  # its lock is free


@pytest.mark.slow  # its sibling in test_board_tools.py interrupts in this process
def test_an_interrupt_leaves_nothing_on_the_device(board, job, tmp_path):
    pid, text = hanging(tmp_path)
    (tmp_path / "runner_hang.py").write_text(text)
    main = (
        "from pathlib import Path\nfrom edgevit.devices import bench, config, plan, remote\n"
        f"plan.RUNNERS['hang'] = Path({str(tmp_path / 'runner_hang.py')!r})\nremote.ALONE += ('hang',)\n"
        f"device = config.make('loop', {board.table!r}, '')\n"
        f"bench.profile([bench.Job('b', 'hang', Path({str(job().engine)!r}))], device=device)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def heed():
        signal.signal(signal.SIGINT, signal.default_int_handler)

    host = subprocess.Popen([sys.executable, "-c", main], env=environment, stderr=subprocess.PIPE, preexec_fn=heed)
    try:
        wait_for(pid.exists)
        host.send_signal(signal.SIGINT)
        _, stderr = host.communicate(timeout=60)
    finally:
        host.kill()
    assert b"KeyboardInterrupt" in stderr
    assert gone(int(pid.read_text()))
    assert left_over(board) == []


def test_two_users_at_once(board, device, job, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(board.folder))  # the board's: where its lock is
    with session_lock(), pytest.raises(MeasureError, match=rf"device loop: another .* \(process {os.getpid()}\)"):
        bench.profile([job()], None, QUICK, device=device)


def test_a_full_disk(board, device, job, tmp_path):
    work = board.folder / "work"
    work.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", work], capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        with pytest.raises(MeasureError, match=r"copying to .* failed: .*No space left on device"):
            bench.profile([job()], None, QUICK, device=device)
        assert left_over(board) == []
    finally:
        subprocess.run(["umount", work], check=True)


def test_no_python_there(board, job):
    found = config.make("loop", {**board.table, "python": "/nowhere/python3"}, "test")
    with pytest.raises(MeasureError, match=r"/nowhere/python3 on the device failed: .*must name a Python 3.9"):
        bench.profile([job()], None, QUICK, device=found)


def test_a_login_that_talks_is_named(board, device, job):
    (board.bin / "env").write_text('#!/bin/sh\necho Welcome!\nexec /usr/bin/env "$@"\n')
    (board.bin / "env").chmod(0o755)
    with pytest.raises(MeasureError, match="said 'Welcome!' where its session answers"):
        bench.profile([job()], None, QUICK, device=device)


def test_the_web_runner_stays_here(device, job):
    with pytest.raises(MeasureError, match="without --device"):
        bench.profile([job(runner="web")], None, QUICK, device=device)


def test_what_arrives_otherwise_than_sent_is_refused(tmp_path):
    transport = config.make(
        "d", {"transport": "local", "python": sys.executable, "work": str(tmp_path / "w")}, ""
    ).transport
    (tmp_path / "f").write_text("x")
    files = {"a/b": File(tmp_path / "f", "0" * 64)}
    with pytest.raises(MeasureError, match="a/b did not arrive as it was sent"):
        place_tree(transport, files)
    assert list((tmp_path / "w" / "trees").iterdir()) == []


def test_trees_nobody_used_for_long_go(tmp_path):
    transport = config.make(
        "d", {"transport": "local", "python": sys.executable, "work": str(tmp_path / "w")}, ""
    ).transport
    (tmp_path / "f").write_text("x")
    file = File.of(tmp_path / "f")
    old, kept = (Path(place_tree(transport, {name: file})) for name in ("old", "kept"))
    for tree in (old, kept):
        os.utime(tree, (0, 0))
    place_tree(transport, {"kept": file})  # used: it counts from now
    place_tree(transport, {"new": file})
    assert (old.exists(), kept.exists()) == (False, True)


def test_a_tree_is_named_by_names_and_contents():
    one = {"a": File(Path("x"), "1"), "b": File(Path("y"), "2")}
    sums = {name: file.sha256 for name, file in one.items()}
    assert tree_name(sums) == tree_name(dict(reversed(sums.items())))
    assert len({tree_name(sums), tree_name({"a": sums["b"], "b": sums["a"]}), tree_name({"a": sums["a"]})}) == 3


def test_a_silent_link_is_lost_and_a_sign_of_life_keeps_it():
    out, into = os.pipe()
    link = Link(out, silence_s=0.5)
    os.write(into, b'\n{"do": "x"}\n')
    assert next(link.requests()) == {"do": "x"}
    start = time.monotonic()
    with pytest.raises(LinkLost, match=r"nothing was heard for 0.5 s"):
        next(link.requests())
    assert time.monotonic() - start >= 0.4
    os.close(into)
    link.heard = time.monotonic()
    with pytest.raises(LinkLost, match="the input ended"):
        next(link.requests())
    os.close(out)


def test_the_sent_code_needs_nothing_but_itself():
    """It runs on other machines: standard library alone, and syntax of Python 3.9."""
    import ast

    for name, file in remote.code().items():
        tree = ast.parse(file.path.read_text(), feature_version=(3, 9))
        if name.startswith("runners/"):
            continue
        imports = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        own = {m for m in imports if m and m.startswith("edgevit")}
        assert own <= {"edgevit.errors", "edgevit.devices", *(f"edgevit.devices.{m}" for m in remote.MODULES)}, name
