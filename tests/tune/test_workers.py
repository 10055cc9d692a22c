"""A killed worker loses one trial, a killed driver those that were running, nobody the study."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgevit.tune.run import tune
from edgevit.tune.turns import Turns
from tests.tune.conftest import settings
from tests.tune.test_study import found, trials

pytest.importorskip("optuna")

TRIALS, WORKERS, PATIENCE_S = 6, 2, 120
SCRIPT = """
import dataclasses, sys
from pathlib import Path
from edgevit.runtimes.fake import Fake
from edgevit.tune.goal import Goal
from edgevit.tune.run import tune
from edgevit.tune.settings import TuneSettings

# a worker reads this file too, as the module of its driver
Fake.policy = dataclasses.replace(Fake.policy, precisions=("fp32", "bf16"), tolerance={"fp32": 1e-5, "bf16": 1e-5})

if __name__ == "__main__":
    data, out, trials, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    tune(TuneSettings(
        model=str(data / "model.pt"), target="fake", device="fake", calib=data / "calib.csv", eval=data / "eval.csv",
        preprocess=data / "pre.json", trust_pickle=True, goal=Goal("max-drop", 40.0), trials=trials, out=out,
        workers=workers,
    ))
"""


def workers_of(driver: int) -> list[int]:
    """Processes that a driver hired."""
    children = Path(f"/proc/{driver}/task/{driver}/children").read_text().split()
    return [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def until(condition, process):
    """Wait; fail when the process ends first or takes too long."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for a process's children in /proc")
def test_killed_workers_and_a_killed_driver_lose_no_trial(quick, material, tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "study"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(material), str(out), str(TRIALS), str(WORKERS)]

    def ended() -> int:
        return len(trials(out)) if (out / "trials.jsonl").exists() else 0

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as driver:
        until(lambda: ended() >= 1, driver)
        assert len(workers_of(driver.pid)) == WORKERS
        os.kill(workers_of(driver.pid)[0], signal.SIGKILL)
        until(lambda: ended() >= 3, driver)
        driver.kill()
    assert 3 <= ended() < TRIALS
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr

    tune(settings(material, tmp_path / "alone", trials=TRIALS))
    assert found(out) == found(tmp_path / "alone")
    assert sum(t["tries"] - 1 for t in trials(out)) <= 1 + WORKERS


def test_nobody_computes_while_this_machine_is_measured(tmp_path):
    import threading

    turns, seen = Turns(tmp_path), []

    def compute():
        with turns.computing():
            seen.append("computed")

    with turns.computing():  # computing is for many
        other = threading.Thread(target=compute)
        other.start()
        other.join(10)
        assert seen == ["computed"]
    with turns.measuring(local=True):
        other = threading.Thread(target=compute)
        other.start()
        other.join(0.2)
        assert seen == ["computed"]
    other.join(10)
    assert seen == ["computed"] * 2
    with turns.measuring(local=False):  # elsewhere: computing goes on
        compute()
