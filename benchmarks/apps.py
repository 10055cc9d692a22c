"""What an app adds to its engine: cold start, warm latency and peak memory beside `edgevit profile`'s own path.

    python benchmarks/apps.py MODEL -o DIR [--target ort|openvino] [--apps python cpp web] [--rounds 40]

MODEL is what `edgevit export` takes, or bundles, one a target. The python app runs the bundle of --target, cpp that of
openvino, web that of web (WASM). Both sides open the same engine file with the bundle's options and the same threads.

Each round is a fresh process, one at a time, A B B A: A is the runner of `edgevit profile`, B the app's own classifier
on a prepared tensor. `across` is B / A - 1 over blocks. In B each call stands beside the bare call of the same session,
the one that A times (web: the worker's own time of the same call); `inside` is their ratio - 1 over rounds, free of
what differs from process to process. python and cpp also start cold once a block: from the start of the process to the
first prediction on its terminal, and of A to its first inference. web: from the navigation to the first classes shown.

Prints a table and writes DIR/apps.md and DIR/apps.json. Exit 1 where the wrapper costs more than 3 %. The rounds in
DIR/rounds.jsonl are not repeated. Only on a machine with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))  # also where PYTHONSAFEPATH keeps it off
from apps_table import summary, table

if TYPE_CHECKING:
    from edgevit.bundle import Bundle
    from edgevit.devices.plan import BenchPlan, Job
    from edgevit.devices.session import Session

HERE = Path(__file__).resolve().parent
WARMUP_S, LEAST_S, MIN_SAMPLES, MAX_S = 0.3, 0.6, 16, 20.0
"""Short rounds, many of them: a machine's state changes between rounds, not within one."""
KEPT = ("load_ms", "first_ms", "peak_memory_bytes", "loadavg", "threads")
"""Of a record of `edgevit profile`."""


@dataclass(frozen=True)
class App:
    """One app folder and how a round of it runs. cold: command and folder that print a prediction, None for web."""

    name: str
    folder: Path
    job: Job
    round: Callable[[], dict[str, Any]]
    cold: tuple[list[str], Path] | None


def bundles(models: list[str], targets: dict[str, str], precision: str | None, calib: Path | None, out: Path) -> Any:
    """Target → bundle: those given, the others exported from the model. targets: app → target, of each app."""
    from edgevit.bundle import MANIFEST, Bundle
    from edgevit.pipeline import ExportSettings, export

    given = [Bundle.load(Path(m)) for m in models if (Path(m) / MANIFEST).is_file()]
    found: dict[str, Bundle] = {bundle.manifest["target"]: bundle for bundle in given}
    rest = [m for m in models if not (Path(m) / MANIFEST).is_file()]
    unused = sorted(set(found) - set(targets.values()))
    if len(rest) > 1 or len(found) < len(given) or unused:
        sys.exit(f"give one model, or one bundle each for {targets}; not {' '.join(models)}")
    for name, target in targets.items():
        if target in found:
            continue
        if not rest:
            sys.exit(f"no bundle for {target}: give one, or a model to export, or leave {name} out with --apps")
        place = out / f"bundle-{target}"
        if not place.exists():
            export(ExportSettings(model=rest[0], target=target, out=place, precision=precision, calib=calib))
        found[target] = Bundle.load(place)
    return found


def ran(command: list[str], cwd: Path | None = None) -> str:
    """Standard output. Raises RuntimeError with the last of standard error."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(command, cwd=cwd, env=plain, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def built(folder: Path, out: Path) -> Path:
    """The C++ app's own programs, and the bench beside them, as a release."""
    import openvino

    if not (out / "bench").exists():
        flags = [f"-DAPP={folder}", f"-DOpenVINO_DIR={Path(openvino.__path__[0]) / 'cmake'}"]
        ran(["cmake", "-S", str(HERE / "apps_cpp"), "-B", str(out), "-DCMAKE_BUILD_TYPE=Release", *flags])
        ran(["cmake", "--build", str(out)])
    return out


def prepare(name: str, bundle: Bundle, plan: BenchPlan, out: Path) -> App:
    """Embed, build where that is needed, and say how a round runs."""
    from edgevit.devices.plan import RUNNERS
    from edgevit.embed.write import embed
    from edgevit.measure import job

    folder = (out / f"app-{name}").resolve()
    if not folder.exists():
        embed(bundle.folder, name, folder)
    target, threads = bundle.manifest["target"], str(plan.threads)
    todo: dict[str, Any] = {
        "app": str(folder), "image": str(folder / "golden/7.ppm"), "target": target, "runner": str(RUNNERS[target]),
        "threads": plan.threads, "seed": plan.seed, "warmup_s": plan.warmup_s, "min_seconds": plan.min_seconds,
        "min_samples": plan.min_samples, "max_seconds": plan.max_seconds,
    }  # fmt: skip
    if name == "python":
        command = [sys.executable, str(HERE / "apps_python.py"), json.dumps(todo)]
        cold = [sys.executable, "-m", "classifier", "golden/2.ppm", "--threads", threads]
    elif name == "cpp":
        programs = built(folder, (out / "build-cpp").resolve())
        settings = [threads, str(plan.warmup_s), str(plan.min_seconds), str(plan.min_samples)]
        command = [str(programs / "bench"), str(folder / "bundle"), todo["image"], *settings]
        cold = [str(programs / "app/classify"), "--threads", threads, "bundle", "golden/2.ppm"]
    else:
        from apps_web import web_round

        return App(name, folder, job(bundle, name), lambda: web_round(folder, todo), None)
    return App(name, folder, job(bundle, name), lambda: json.loads(ran(command)), (cold, folder))


def block(app: App, plan: BenchPlan, cores: int, session: Session) -> dict[str, Any]:
    """A B B A, and the cold starts; medians in milliseconds."""
    from edgevit.devices.bench import build_request

    request = build_request(app.job, plan, cores, session.engine(app.job))
    request |= {"min_samples": plan.min_samples, "round": 0}
    sides: dict[str, list[dict[str, Any]]] = {"profile": [], "app": []}
    for side in ("profile", "app", "app", "profile"):
        if side == "profile":
            found = session.run(request, app.name, 900)
            found = {"median_ms": median(found["samples_ms"]), **{key: found[key] for key in KEPT}}
        else:
            found = app.round()
            found["inside"] = ratio(found["bare"], found["app"])
            found |= {f"{name}_ms": median(found.pop(name)) for name in ("bare", "app", "image")}
        sides[side].append(found)
    cold: dict[str, Any] = {}
    if app.cold:
        start = monotonic()
        first = session.run({**request, "warmup_s": 0, "min_samples": 1, "min_seconds": 0}, app.name, 900)
        cold["profile_ms"] = (first["window_s"][0] - start) * 1e3  # sampling begins behind the first inference
        command, folder = app.cold
        cold |= json.loads(ran([sys.executable, str(HERE / "apps_cold.py"), str(folder), *command]))
    return {"name": app.name, **sides, "cold": cold}


def ratio(bare: list[float], app: list[float]) -> float:
    """The app to the bare call, median over A B B A: what changes during a round falls on both sides of each."""
    return median(sum(app[i : i + 2]) / sum(bare[i : i + 2]) for i in range(0, len(app) - 1, 2))


def measure(apps: list[App], plan: BenchPlan, path: Path) -> list[dict[str, Any]]:
    """Blocks of every app, in turns; each is a line of `path` as soon as it is done."""
    from edgevit.devices.conditions import usable_cores
    from edgevit.devices.session import here

    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    blocks = (plan.rounds + 1) // 2
    with here() as session:
        for number in range(blocks):
            for app in apps:
                if sum(row["name"] == app.name for row in rows) > number:
                    continue
                print(f"{app.name}: block {number + 1} of {blocks}", file=sys.stderr)
                rows.append(block(app, plan, usable_cores(), session))
                with path.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(rows[-1]) + "\n")
    return rows


def same_settings(found: dict[str, Any], path: Path) -> None:
    """Exit where the folder's rounds are of other settings."""
    if path.exists() and json.loads(path.read_text()) != found:
        sys.exit(f"{path} is of other settings than {found}: give another -o, or the same settings")
    path.write_text(json.dumps(found))


def main() -> int:
    """Export, embed, build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a model to export, or bundles")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--target", choices=("ort", "openvino"), default="openvino", help="of the python app")
    parser.add_argument("--apps", nargs="+", choices=("python", "cpp", "web"), default=["python", "cpp", "web"])
    parser.add_argument("--precision", help="as for export, of every target")
    parser.add_argument("--calib", type=Path, metavar="DATA")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="fresh processes of each side")
    parser.add_argument("--threads", type=int, metavar="N", help="default: every core that this process may use")
    arguments = parser.parse_args()
    from edgevit.devices import conditions
    from edgevit.devices.plan import BenchPlan
    from edgevit.errors import EdgeVitError

    threads = arguments.threads or conditions.usable_cores()
    plan = BenchPlan(arguments.rounds, WARMUP_S, MIN_SAMPLES, LEAST_S, MAX_S, threads)
    wanted = {"python": arguments.target, "cpp": "openvino", "web": "web"}
    targets = {name: wanted[name] for name in arguments.apps}
    settings = {"models": arguments.models, "target": arguments.target, "precision": arguments.precision}
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    same_settings({**settings, "threads": threads}, out / "settings.json")
    if "cpp" in targets and not shutil.which("cmake"):
        sys.exit("the cpp app needs cmake and a compiler: install them, or leave it out with --apps python web")
    try:
        found = bundles(arguments.models, targets, arguments.precision, arguments.calib, out)
        before = conditions.state()
        rows = measure(
            [prepare(name, found[target], plan, out) for name, target in targets.items()], plan, out / "rounds.jsonl"
        )
    except (EdgeVitError, RuntimeError) as error:
        sys.exit(f"apps: {error}")
    about = {name: {"target": t, "precision": found[t].manifest["precision"]} for name, t in targets.items()}
    results = {name: {**about[name], **summary([r for r in rows if r["name"] == name])} for name in targets}
    machine = {"device": conditions.device(), "before": before, "after": conditions.state()}
    (out / "apps.json").write_text(json.dumps({**settings, "threads": threads, **machine, "apps": results}, indent=1))
    (out / "apps.md").write_text(table(results))
    print(table(results))
    return int(any(row["under_3_percent"] is False for row in results.values()))


if __name__ == "__main__":
    sys.exit(main())
