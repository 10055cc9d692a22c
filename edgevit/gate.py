"""The gates of an export, held by measurement: accuracy and latency beside the dense float32 engine of the same target.

An int8 engine that loses too much gives layers back to float, those first whose damage is largest for the time they
cost; one that is not fast enough gives back regions that int8 made no faster. What was tried is a table either way.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.bundle import REPORT, SCHEMA, Bundle, write_json
from edgevit.errors import GateFailed
from edgevit.names import listed
from edgevit.pipeline import finish, prepare, resolved
from edgevit.tokens.schedule import TokenSchedule

if TYPE_CHECKING:
    from edgevit.data import Dataset
    from edgevit.pipeline import ExportSettings, Road
    from edgevit.progress import Progress
    from edgevit.quant.sensitivity import Part

MOST = 0.5
"""Share of the quantized multiply-accumulates that may be given back; beyond it int8 is the wrong answer."""
NOTABLE = 0.02
"""A region with a smaller share of the multiply-accumulates is not worth a build and a measurement."""
ROUNDS = 6


@dataclass
class _Trials:
    """Builds and measures candidates beside one baseline, and remembers each as a row."""

    road: Road
    baseline: Bundle
    data: Dataset | None
    progress: Progress
    scratch: Path
    device: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        from edgevit.evaluate import evaluate

        self.theirs = evaluate(self.baseline, self.data, self.progress) if self.data else None

    def build(self, keep: Mapping[str, str]) -> Bundle:
        """A candidate in a folder of its own."""
        folder = self.scratch / f"trial-{len(self.rows)}"
        folder.mkdir()
        return finish(self.road, folder, keep, self.progress)

    def score(self, bundle: Bundle, what: str) -> dict[str, Any]:
        """Its accuracy beside the baseline's, as a new row."""
        from edgevit.evaluate import compare, evaluate

        row: dict[str, Any] = {"float": what}
        if self.data and self.theirs:
            ours = evaluate(bundle, self.data, self.progress)
            row |= {"top1": ours.top1, "images": ours.images, "drop": self.theirs.top1 - ours.top1, "by": ours.by}
            row |= {"against": compare(ours, self.theirs)}
        self.rows.append(row)
        return row

    def time(self, bundle: Bundle, against: Bundle, rounds: int | None = None) -> dict[str, Any]:
        """Speedup over another bundle, in alternating processes."""
        from edgevit.devices.bench import BenchPlan, profile
        from edgevit.devices.config import LOCAL, find
        from edgevit.measure import check_kind, job

        device = None if self.device == LOCAL else find(self.device)
        check_kind(bundle, device.kind if device else LOCAL)
        jobs = [job(each, name, device is not None) for each, name in ((bundle, "candidate"), (against, "against"))]
        plan = BenchPlan() if rounds is None else BenchPlan(rounds=rounds)
        measured = profile(jobs[:1], jobs[1], plan, self.progress, device)
        speedup: dict[str, Any] = measured.to_json()["speedup"]["candidate"]
        return speedup


def hold(
    road: Road, bundle: Bundle, data: Dataset | None, settings: ExportSettings, progress: Progress
) -> tuple[Bundle, dict[str, Any]]:
    """Measure a bundle, give layers back to float until the gates hold, and write its report.

    Returns the bundle, rebuilt in its folder where layers went back, and the measured result. Raises GateFailed.
    """
    with tempfile.TemporaryDirectory(prefix="edgevit-gate-") as where:
        folder = Path(where) / "baseline"
        folder.mkdir()
        default = resolved(road.target, None)
        plain = replace(settings, reduce="none", precision=None, calib=None, labels=None)
        dense = prepare(road.checkpoint, road.target, default, TokenSchedule.none(), road.data, plain, progress)
        baseline = finish(dense, folder, {}, progress)
        trials = _Trials(road, baseline, data, progress, Path(where), settings.device)
        row, keep = trials.score(bundle, "nothing"), dict[str, str]()
        limit, least = settings.max_drop, settings.min_speedup
        if road.calibration and ((limit is not None and row["drop"] > limit) or least is not None):
            row, keep = _give_back(trials, bundle, row, limit, least)
        if keep:
            bundle = _rebuilt(trials, bundle.folder, keep)
        if least is not None:
            row |= {"speedup": trials.time(bundle, trials.baseline), "device": settings.device}
        result = {"baseline": f"dense {default} on {road.target.name}", **row, "trials": trials.rows}
    broken = []
    if limit is not None and row["drop"] > limit:
        broken.append(f"accuracy drops {row['drop']:.2f} points, --max-drop allows {limit:g}")
    if least is not None and row["speedup"]["ratio"] < least:
        broken.append(f"speedup is {row['speedup']['ratio']:.2f}, --min-speedup asks {least:g}")
    if broken:
        text = f"{'; '.join(broken)} (against {result['baseline']}); no bundle was written"
        raise GateFailed(text, trials.rows)
    write_json(bundle.folder / REPORT, {"schema": SCHEMA, "gate": result, "evaluations": [], "profiles": []})
    return bundle, result


def _rebuilt(trials: _Trials, folder: Path, keep: Mapping[str, str]) -> Bundle:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return finish(trials.road, folder, keep, trials.progress)


def _give_back(
    trials: _Trials, bundle: Bundle, row: dict[str, Any], limit: float | None, least: float | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The row and the float layers of the first candidate that holds; of the best one when none does."""
    from edgevit.quant.sensitivity import parts

    assert trials.road.calibration is not None
    trials.progress("rank layers", 0, 0)
    ranked = parts(trials.road.calibration)
    keep: dict[str, str] = {}
    if least is not None:
        keep = _slow_regions(trials, bundle, ranked)
        if keep:
            row = trials.score(trials.build(keep), f"{len(keep)} layers that int8 made no faster")
    if limit is None or row["drop"] <= limit:
        return row, keep
    rest = [part for part in ranked if not set(part.layers) <= set(keep)]

    def attempt(count: int) -> tuple[dict[str, Any], dict[str, str]]:
        more = {
            name: f"float for --max-drop: alone it costs {part.damage:.2g} of divergence"
            for part in rest[:count]
            for name in part.layers
        }
        candidate = {**keep, **more}
        return trials.score(trials.build(candidate), listed(candidate, 3)), candidate

    failed, count, best = 0, 1, (row, keep)
    while best[0]["drop"] > limit:  # 1, 2, 4, ... until it holds
        if count > len(rest) or sum(part.share for part in rest[:count]) > MOST:
            return best
        best = min(best, attempt(count), key=lambda tried: tried[0]["drop"])
        if best[0]["drop"] > limit:
            failed, count = count, 2 * count
    while count - failed > 1:  # then the fewest that hold
        middle = (count + failed) // 2
        tried = attempt(middle)
        if tried[0]["drop"] <= limit:
            count, best = middle, tried
        else:
            failed = middle
    return best


def _slow_regions(trials: _Trials, bundle: Bundle, ranked: list[Part]) -> dict[str, str]:
    """Layers of regions whose float makes the engine faster, surely: a whole region each, measured one by one."""
    keep: dict[str, str] = {}
    for region in sorted({part.region for part in ranked}):
        own = [part for part in ranked if part.region == region]
        if sum(part.share for part in own) < NOTABLE or len(own) == len(ranked):
            continue
        names = {name for part in own for name in part.layers}
        candidate = trials.build({name: "" for name in names})
        speedup = trials.time(candidate, bundle, ROUNDS)
        trials.rows.append({"float": f"region {region}, {len(names)} layers", "over_int8": speedup})
        if speedup["ci95"][0] > 1:
            reason = f"float for speed: without int8 in {region} the engine is {speedup['ratio']:.2f} times as fast"
            keep |= dict.fromkeys(names, reason)
    return keep
