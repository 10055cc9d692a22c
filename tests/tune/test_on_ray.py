"""A cluster of two nodes on this machine finds what one process finds; a killed worker or driver loses no trial."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings

import pytest

from edgevit.bundle import Bundle
from edgevit.errors import EdgeVitError
from edgevit.tune.on_ray.carry import pack, unpack
from edgevit.tune.on_ray.cluster import alive, cluster, nodes
from edgevit.tune.on_ray.place import claim, machine
from edgevit.tune.on_ray.staff import Staff
from edgevit.tune.run import tune
from tests.tune.conftest import settings
from tests.tune.nodes import START_S, kill_node, of_ray, one_node, owner_joins, ray_start, stop, wait_for
from tests.tune.test_study import found, trials
from tests.tune.test_workers import until

pytest.importorskip("optuna")

TRIALS = 6
SCRIPT = """
import dataclasses, sys
from pathlib import Path
import ray
from edgevit.tune.goal import Goal
from edgevit.tune.run import tune
from edgevit.tune.settings import TuneSettings

def two_floats():
    from edgevit.runtimes.fake import Fake
    Fake.policy = dataclasses.replace(Fake.policy, precisions=("fp32", "bf16"), tolerance={"fp32": 1e-5, "bf16": 1e-5})

if __name__ == "__main__":
    data, out, trials, address = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    two_floats()
    ray.init(address=address, log_to_driver=False, runtime_env={"worker_process_setup_hook": two_floats})
    tune(TuneSettings(
        model="model.pt", target="fake", device="fake", calib=Path("calib.csv"), eval=Path("eval.csv"),
        preprocess=Path("pre.json"), trust_pickle=True, goal=Goal("max-drop", 40.0), trials=trials, out=out,
        ray=address,
    ))
"""


@pytest.fixture(scope="module")
def head():
    """Address of a cluster of one node."""
    pytest.importorskip("ray")
    with one_node() as address:
        yield address


@pytest.fixture
def both(head):
    """Its address, with a second node that owns the device."""
    with owner_joins(head):
        yield head


@contextlib.contextmanager
def connected(address):
    """As `edgevit tune` is."""
    import ray

    with warnings.catch_warnings():  # on what later versions of Ray will do
        warnings.simplefilter("ignore")
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for Ray's workers in /proc")
def test_a_study_on_two_nodes_survives_a_killed_worker_and_a_killed_driver(quick, material, tmp_path, both):
    script, out = tmp_path / "script.py", tmp_path / "study"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(material), str(out), str(TRIALS), both]

    def ended() -> int:
        return len(trials(out)) if (out / "trials.jsonl").exists() else 0

    with subprocess.Popen(command, cwd=material, stderr=subprocess.PIPE, text=True) as driver:
        until(lambda: ended() >= 1, driver)
        assert len(of_ray("Worker")) == 2
        os.kill(of_ray("Worker")[0], signal.SIGKILL)
        os.kill(of_ray("Device")[0], signal.SIGKILL)
        until(lambda: ended() >= 3, driver)
        driver.kill()
    assert 3 <= ended() < TRIALS
    end = time.monotonic() + START_S
    while of_ray("Worker") or of_ray("Device"):  # they end with their driver
        assert time.monotonic() < end
        time.sleep(0.1)
    again = subprocess.run(command, cwd=material, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr

    alone = tune(settings(material, tmp_path / "alone", trials=TRIALS))
    assert found(out) == found(tmp_path / "alone")
    lost = sum(t["tries"] - 1 for t in trials(out))
    assert 1 <= lost <= 1 + 2 + 2  # the worker's, those that asked the dead device, those of the driver's end
    result = json.loads((out / "result.json").read_text())
    assert result["trials"] == alone.result["trials"]
    assert result["holdout"] == alone.result["holdout"]
    for key in ("schedule", "precision", "speedup"):
        assert result["best"][key] == alone.result["best"][key]
    assert str(material) not in result["best"]["command"]  # paths as they were given, not as the nodes read them
    assert Bundle.load(out / "winner").manifest["files"] == Bundle.load(tmp_path / "alone" / "winner").manifest["files"]


@pytest.mark.slow
def test_a_dead_node_loses_what_it_was_at_and_one_that_joins_gets_a_worker(head):
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Sleeper:  # defined here, so that nodes get it by value
        def ready(self):
            return None

        def sleep(self, seconds):
            time.sleep(seconds)
            return "slept"

        def leave(self):
            return None

    def hire(node):
        there = NodeAffinitySchedulingStrategy(node.key, soft=False)
        actor = ray.remote(Sleeper).options(num_cpus=node.cpus, scheduling_strategy=there).remote()
        return actor, actor.ready.remote()

    wait_for(head, 1)
    doomed = ray_start(f"--address={head}")
    wait_for(head, 2)
    with connected(head):
        staff = Staff(hire, alive)
        assert staff.room == 2
        for name in ("one", "two"):
            staff.submit(name, "sleep", 5)
        kill_node(doomed)
        ended = dict(staff.wait())
        while len(ended) < 2:
            ended |= dict(staff.wait())
        assert sorted(ended.values(), key=str) == [None, "slept"]
        other = ray_start(f"--address={head}")
        try:
            end = time.monotonic() + START_S
            while staff.room < 2:
                assert time.monotonic() < end
                staff.submit("more", "sleep", 1)
                assert staff.wait() == [("more", "slept")]
            staff.close()
        finally:
            stop(other)


@pytest.mark.slow
def test_what_ray_prints_is_not_taken_for_the_result(both, asked, capsys):
    from ray._private.utils import push_error_to_driver
    from ray._private.worker import global_worker

    with cluster(asked(ray=both)):
        said, end = "", time.monotonic() + START_S
        while "what a node says" not in said:
            assert time.monotonic() < end
            push_error_to_driver(
                global_worker, "test", "what a node says"
            )  # again: who has not subscribed yet misses it
            time.sleep(0.2)
            seen = capsys.readouterr()
            assert seen.out == ""
            said += seen.err


@pytest.mark.slow
def test_where_the_device_leaves_the_study_ends_with_a_line(head):
    wait_for(head, 1)
    owner = ray_start(f"--address={head}", "--resources", '{"edgevit-device": 1}')
    wait_for(head, 2)
    with connected(head):
        assert [node.device for node in sorted(nodes(), key=lambda n: n.device)] == [False, True]
        kill_node(owner)
        end = time.monotonic() + START_S
        while any(node.device for node in alive()):
            assert time.monotonic() < end
            time.sleep(0.2)
        with pytest.raises(EdgeVitError, match="no node of the Ray cluster has the resource edgevit-device"):
            nodes()


@pytest.mark.slow
def test_a_cluster_without_a_device_is_refused(head, words, cli):
    said = cli(*words, "--max-drop", 40, "--ray", head)
    assert said.code == 1
    assert "no node of the Ray cluster has the resource edgevit-device" in said.message
    import ray

    assert not ray.is_initialized()  # or Ray would end this process with the cluster, silently


def test_settings_that_exclude_each_other_are_refused(words, refused):
    assert "exclude each other" in refused(*words, "--max-drop", 1, "--ray", "auto", "--workers", 2)
    assert "is not HOST:PORT or auto" in refused(*words, "--max-drop", 1, "--ray", "ray://127.0.0.1:10001")


def test_without_the_package_the_line_to_type_is_given(words, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'edgevit[ray]'" in refused(*words, "--max-drop", 1, "--ray", "auto")


def test_a_bundle_comes_back_as_it_was(fake_bundle, tmp_path):
    built = Bundle.load(fake_bundle)
    back = unpack(pack(built), tmp_path / "elsewhere")
    assert back.manifest == built.manifest
    assert back.folder.name == built.folder.name


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_holds_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (machine() / "dead").mkdir()
    living = claim()
    (living.folder / "bundle").write_text("x")
    other = claim()
    assert {p.name for p in machine().iterdir() if p.is_dir()} == {living.folder.name, other.folder.name}
    assert (living.folder / "bundle").exists()
    living.remove()
    other.remove()
    assert not living.folder.exists()
