"""Sessions of the history and what `edgevit eval --json` wrote → rows, samples, conditions and notes of a report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgevit.errors import DataError
from edgevit.evaluate import standard_error
from edgevit.report_rows import Row


@dataclass(frozen=True)
class Measured:
    """What a page is made of. samples: row → a list for each of its rounds, in milliseconds, in order."""

    rows: tuple[Row, ...]
    samples: Mapping[str, Sequence[Sequence[float]]]
    conditions: Mapping[str, Any]
    notes: tuple[str, ...]


def measured(sessions: Sequence[Mapping[str, Any]], accuracy: Mapping[str, Mapping[str, Any]]) -> Measured:
    """Rows of each session, its baseline first; where there are several, a row's name says its device.

    sessions: `edgevit.devices.history.session`; accuracy: `read_accuracy`.
    """
    rows: list[Row] = []
    samples: dict[str, list[list[float]]] = {}
    conditions: dict[str, Any] = {}
    notes: list[str] = []
    for one in sessions:
        summary, end = one["summary"], f" on {one['device']}, {one['session']}" if len(sessions) > 1 else ""
        first = summary["against"] or summary["results"][0]["bundle"]
        for result in sorted(summary["results"], key=lambda r: r["bundle"] != first):
            found = [line for line in one["rounds"] if line["bundle"] == result["bundle"]]
            row = _row(result, summary["speedup"].get(result["bundle"]), found[0]["engine"], accuracy, end)
            rows.append(row)
            samples[row.name] = [line["samples_ms"] for line in found]
        conditions[one["session"]] = {"time": one["time"], "device": summary["device"], **summary["conditions"]}
        notes += [note + end for note in summary["notes"]]
    return Measured(tuple(rows), samples, conditions if len(sessions) > 1 else conditions[one["session"]], tuple(notes))


def _row(
    result: Mapping[str, Any],
    speed: Mapping[str, Any] | None,
    engine: Mapping[str, Any],
    accuracy: Mapping[str, Mapping[str, Any]],
    end: str,
) -> Row:
    """One bundle of one session."""
    name = result["bundle"]
    return Row(
        name=name + end,
        bundle=name,
        target=engine.get("target", ""),
        precision=engine.get("precision", ""),
        schedule=engine.get("schedule", ""),
        median_ms=result["median_ms"],
        ci95_ms=tuple(result["ci95_ms"]),
        speedup=speed["ratio"] if speed else None,
        speedup_ci95=tuple(speed["ci95"]) if speed else None,
        size_bytes=engine.get("size_bytes"),
        macs=engine.get("macs", {}).get("reduced"),
        **accuracy.get(name, {}),
    )


def read_accuracy(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Bundle → the fields of a Row that `edgevit eval --json` knows.

    Raises DataError: not such a file, or a bundle in two of them.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in files:
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            one = {r["bundle"]: {key: r[key] for key in ("top1", "top1_se", "images")} for r in said["results"]}
            for pair in said.get("comparisons", []):
                one[pair["result"]] |= {key: pair[key] for key in ("agreement", "flips_lost", "flips_won")}
                images = one[pair["result"]]["images"]
                base = {"top1": pair["top1"], "top1_se": standard_error(pair["top1"], images), "images": images}
                one.setdefault(pair["bundle"], base)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not what `edgevit eval --json` prints"
            raise DataError(f"--eval {path}: {why}") from error
        if twice := sorted(set(one) & set(found)):
            raise DataError(f"--eval {path}: {twice[0]} is in another --eval file too; give one of them")
        found |= one
    return found


def columns(row: Row) -> dict[str, Any]:
    """A line of the CSV: an interval is two columns."""
    flat: dict[str, Any] = {}
    for key, value in asdict(row).items():
        if key in ("ci95_ms", "speedup_ci95"):
            flat[f"{key}_low"], flat[f"{key}_high"] = value or (None, None)
        else:
            flat[key] = value
    return flat
