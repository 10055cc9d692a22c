"""A whole study on the fake target: what is tried first, what wins, what is left, going on after an interruption."""

import json
import shlex
from pathlib import Path

import pytest

from edgevit.bundle import Bundle
from edgevit.errors import GateFailed
from edgevit.tune.goal import Goal
from edgevit.tune.meter import BenchMeter, FakeMeter
from edgevit.tune.run import tune
from edgevit.tune.workshop import split
from tests.tune.conftest import settings

pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("quick")


def trials(folder):
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def found(folder):
    """What a study found, without the numbers that chance of scheduling may change."""
    return [{k: v for k, v in t.items() if k not in ("trial", "tries", "seconds", "command")} for t in trials(folder)]


@pytest.fixture(scope="module")
def done(quick, material, tmp_path_factory):
    """One study, run to its end: settings, outcome."""
    asked = settings(material, tmp_path_factory.mktemp("done") / "study")
    return asked, tune(asked)


def test_unreduced_engines_are_tried_first(done):
    first = trials(done[0].out)[:2]
    assert [(t["reduce"], t["precision"]) for t in first] == [("none", "fp32"), ("none", "bf16")]
    assert first[0]["figures"]["drop"] == 0
    assert first[0]["figures"]["ratio"] == 1


def test_the_result_has_the_documented_keys_and_says_that_it_is_fake(done):
    asked, outcome = done
    assert {"bundle", "schedule", "precision", "top1_drop", "speedup"} <= set(outcome.result["best"])
    assert outcome.result["trials"]["count"] == len(trials(asked.out)) == 4
    assert outcome.result["fake"] is True
    assert "FAKE" in outcome.summary
    assert (asked.out / "summary.md").read_text() == outcome.summary
    for section in ("What was tried", "What limited it", "To go further"):
        assert section in outcome.summary


def test_the_winner_is_a_bundle_with_its_evidence(done):
    asked, outcome = done
    bundle = Bundle.load(asked.out / "winner")
    assert bundle.manifest["precision"] == outcome.result["best"]["precision"]
    assert json.loads((bundle.folder / "report.json").read_text())["tune"]["holdout"] == outcome.result["holdout"]


def test_the_winner_is_the_fastest_that_is_accurate_enough(done):
    asked, outcome = done
    good = [t for t in trials(asked.out) if t["state"] == "complete" and t["figures"]["drop"] <= 40]
    assert outcome.result["best"]["speedup"] == max(t["figures"]["ratio"] for t in good)


def test_every_trial_that_ended_early_says_where_and_why(done):
    for trial in trials(done[0].out):
        assert (trial["state"] == "complete") == (trial["why"] is None) == (trial["stopped_at"] is None)


def test_the_front_is_a_page_a_picture_and_a_table(done):
    folder, best = done[0].out, done[1].result["best"]
    page, held_back = (folder / "front.html").read_text(), done[1].result["holdout"]
    detail = page[page.index('<p class="detail">') :]
    assert f"top-1 {held_back['dense_top1']:.1f} → {held_back['top1']:.1f} % on 32 images" in detail[:400]
    winner = page[page.index('<tr role="row" class="pick">') :]
    assert f"{best['schedule']} {best['precision']}" in winner[: winner.index("</tr>")]
    assert "<svg" in page
    assert "FAKE" in page
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "front.csv").read_text().startswith("name,")


@pytest.mark.slow
def test_the_command_of_a_trial_builds_it_again(done, cli):
    asked, outcome = done
    command = shlex.split(outcome.result["best"]["command"])
    assert cli(*command[1:], "--json").code == 0
    again, winner = Bundle.load(Path(command[-1])), Bundle.load(asked.out / "winner")
    assert again.manifest["schedule"] == winner.manifest["schedule"]
    assert again.manifest["precision"] == winner.manifest["precision"]


def test_a_finished_study_answers_again_without_a_trial(done):
    asked, outcome = done
    before = (asked.out / "trials.jsonl").read_text()
    assert tune(asked).result == outcome.result
    assert (asked.out / "trials.jsonl").read_text() == before


@pytest.mark.slow
def test_a_study_in_two_calls_is_the_study_in_one(done, asked):
    tune(asked(trials=3))
    outcome = tune(asked())
    assert found(asked().out) == found(done[0].out)
    assert outcome.result["best"]["schedule"] == done[1].result["best"]["schedule"]


def test_an_interrupted_trial_is_failed_and_tried_again(done, asked, monkeypatch):
    from edgevit.tune import pool

    run_trial, calls = pool.run_trial, []

    def interrupted(shop, job):
        calls.append(job)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run_trial(shop, job)

    monkeypatch.setattr(pool, "run_trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(asked())
    tune(asked())
    assert found(asked().out) == found(done[0].out)
    assert [t["tries"] for t in trials(asked().out)].count(2) == 1
    assert len(calls) == 5  # one more than the trials


def test_where_reduction_gains_nothing_the_answer_is_not_to_reduce(asked, monkeypatch):
    monkeypatch.setattr(FakeMeter, "MS_PER_POINT", 100.0)
    outcome = tune(asked(trials=3))
    assert outcome.result["best"]["schedule"] == "none"
    assert outcome.result["best"]["precision"] == "bf16"
    assert "Do not reduce" in outcome.summary
    assert "is what all are compared with" not in outcome.summary


def test_where_8_bits_gain_nothing_either_the_answer_is_dense_itself(asked, monkeypatch):
    monkeypatch.setattr(FakeMeter, "MS_PER_POINT", 100.0)
    monkeypatch.setattr(FakeMeter, "SPEED", dict.fromkeys(FakeMeter.SPEED, 0.5))
    outcome = tune(asked(trials=2))
    assert (outcome.result["best"]["schedule"], outcome.result["best"]["precision"]) == ("none", "fp32")
    assert "is what all are compared with" in outcome.summary


def test_where_nothing_is_fast_enough_it_ends_with_the_front(asked):
    with pytest.raises(GateFailed, match="nothing meets --latency") as ended:
        tune(asked(goal=Goal("latency", 1e-6), trials=3))
    assert ended.value.trials[0]["ratio"] >= 1
    assert "Nothing that was tried meets" in (asked().out / "summary.md").read_text()


def test_the_most_accurate_within_a_latency(asked):
    outcome = tune(asked(goal=Goal("latency", 1e3), trials=3))
    assert outcome.result["best"]["search_drop"] <= 0  # dense fp32 is fast enough


@pytest.mark.slow
def test_the_front_is_what_pareto_gives(asked):
    outcome = tune(asked(goal=Goal("pareto"), trials=6))
    front = outcome.result["front"]
    assert [p["ratio"] for p in front] == sorted((p["ratio"] for p in front), reverse=True)
    assert [p["drop"] for p in front] == sorted((p["drop"] for p in front), reverse=True)


def test_images_held_back_take_no_part_in_the_search(asked, material):
    search, holdout = split(asked())
    assert len(search) + len(holdout) == 64
    assert not set(search.files) & set(holdout.files)
    in_order = material / "in_order.csv"
    lines = (material / "eval.csv").read_text().splitlines()
    in_order.write_text("\n".join([lines[0], *sorted(lines[1:], key=lambda line: int(line.rsplit(",", 1)[1]))]))
    search, holdout = split(asked(eval=in_order))
    assert all(abs(search.labels.count(label) - holdout.labels.count(label)) <= 1 for label in range(10))


def test_an_image_in_both_sets_is_refused(words, material, refused):
    said = refused(*words, "--max-drop", 1, "--holdout", material / "eval.csv")
    assert "64 images are in --eval and in --holdout" in said


def test_another_command_does_not_go_on_with_a_study(done, words, cli):
    result = cli(*words, "--max-drop", 2, "-o", done[0].out)
    assert result.code == 1
    assert "holds a study with goal --max-drop 40 points, and this command says --max-drop 2 points" in result.message


def test_a_folder_that_holds_something_else_is_left_alone(words, refused, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    assert "holds no study" in refused(*words, "--max-drop", 1, "-o", "mine")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--max-drop", "nan"), "--max-drop nan must be a number"),
        (("--latency", "0"), "--latency 0 must be a number, above 0"),
        (("--pareto", "--trials", "0"), "--trials 0 must be 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(words, refused, flags, said):
    assert said in refused(*words, *flags)


def test_the_real_meter_compares_with_dense_in_one_session(done):
    """The runner `fake` makes the numbers up; the sessions, processes and the lock are real."""
    dense, other = (Bundle.load(done[0].out / "bundles" / name) for name in ("dense", "trial-1"))
    timing = BenchMeter("local").time([other], dense)[0]
    assert timing.fake
    assert timing.meter == "local"
    assert timing.ratio == pytest.approx(1, abs=0.1)  # both 2 ms; jitter of 2 % a round
    assert timing.ratio_ci95[0] <= timing.ratio <= timing.ratio_ci95[1]
