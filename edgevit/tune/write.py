"""What a study leaves for people: trials, front, summary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgevit.evaluate import standard_error
from edgevit.files import whole
from edgevit.report_rows import Headline, Row, chosen
from edgevit.tune.goal import front, loss
from edgevit.tune.record import Record
from edgevit.tune.settings import TuneSettings
from edgevit.tune.space import Space


@dataclass(frozen=True)
class Study:
    """A study at its end. top1: of dense, on the search images; base: its trial. winner: None where nothing fits."""

    settings: TuneSettings
    space: Space
    records: Sequence[Record]
    top1: float
    base: Record | None
    stopped: str
    spent_s: float
    winner: Record | None = None
    holdout: Mapping[str, Any] = field(default_factory=dict)
    finalists: tuple[Record, ...] = ()


def write_trials(out: Path, records: Sequence[Record]) -> None:
    """trials.jsonl: a line a trial."""
    with whole(out / "trials.jsonl") as beside:
        beside.write_text("".join(json.dumps(r.to_json()) + "\n" for r in records), encoding="utf-8")


def write_study(study: Study) -> str:
    """front.html, front.csv, front.png, trials.jsonl and summary.md; the summary's text. Raises OSError."""
    out = study.settings.out
    write_trials(out, study.records)
    rows = report_rows(study)
    if rows:
        _write_front(study, rows)
    text = summary(study)
    with whole(out / "summary.md") as beside:
        beside.write_text(text, encoding="utf-8")
    return text


def report_rows(study: Study) -> list[Row]:
    """Dense first, then the front and the unreduced engines, fastest first; accuracy on the search images.

    A finalist's latency is that of the finalists' session, and so is dense's.
    """
    again = {r.trial: r for r in study.finalists}
    done = [r for r in study.records if r.state == "complete"]
    wanted = {r.trial for r in front(done)} | {r.trial for r in done if r.reduce == "none"}
    others = [again.get(r.trial, r) for r in done if r.trial in wanted and r is not study.base]
    first = [study.base] if study.base and study.base.state == "complete" else []
    rows = [_row(study, r) for r in (*first, *sorted(others, key=lambda r: -r.figures["ratio"]))]
    if first and study.finalists:
        rows[0] = replace(rows[0], median_ms=study.finalists[0].figures["dense_ms"], ci95_ms=None)
    return rows


def _row(study: Study, record: Record) -> Row:
    f = record.figures
    top1 = study.top1 - f["drop"]
    return Row(
        name=record.name,
        bundle=f"trial {record.trial}",
        target=study.settings.target,
        precision=record.precision,
        schedule=f["schedule"],
        top1=top1,
        top1_se=standard_error(min(max(top1, 0.0), 100.0), f["images"]),
        images=f["images"],
        flips_lost=f["lost"],
        flips_won=f["won"],
        median_ms=f["median_ms"],
        ci95_ms=tuple(f["ci95_ms"]),  # type: ignore[arg-type]  # two numbers, or two None
        speedup=f["ratio"],
        speedup_ci95=tuple(f["ratio_ci95"]),  # type: ignore[arg-type]
        size_bytes=f["size_bytes"],
        macs=f["macs"],
    )


def _write_front(study: Study, rows: Sequence[Row]) -> None:
    """The pictures of `edgevit report`."""
    from edgevit.commands.terminal import csv_text
    from edgevit.errors import MissingExtra
    from edgevit.report import write_report
    from edgevit.report_png import write_front
    from edgevit.report_session import columns

    out, settings = study.settings.out, study.settings
    flat = [columns(row) for row in rows]
    with whole(out / "front.csv") as beside:
        beside.write_text(csv_text(flat[0], flat), encoding="utf-8")
    notes = ["Accuracy in the table and the plot is of the search images, in the headline of those held back."]
    if any(r.figures.get("fake") for r in study.records):
        notes.insert(0, "FAKE: latencies are made up by a formula, nothing was measured")
    try:
        write_front(out / "front.png", rows)
    except MissingExtra as error:
        notes.append(f"front.png was not drawn: {error}")
    title = f"{settings.model} on {settings.target}: {settings.goal}"
    if study.winner:
        names = ", ".join(r.name for r in study.finalists)
        notes.append(f"Measured again side by side, for longer: {names}. The other latencies are of short sessions.")
    conditions = {**settings.fixed(), "trials": len(study.records), "stopped by": study.stopped}
    commands = [r.command for r in front(study.records)]
    write_report(
        out / "front.html", title, rows, conditions, commands=commands, notes=notes, said=_headline(study, rows)
    )


def _headline(study: Study, rows: Sequence[Row]) -> Headline:
    """The winner, by its accuracy on the images held back: on the search images it is also the luckiest."""
    winner, h = study.winner, study.holdout
    if winner is None:
        return Headline(f"Nothing that was tried meets {study.settings.goal}")
    place = next(i for i, row in enumerate(rows) if row.bundle == f"trial {winner.trial}")
    own = {"top1": h["top1"], "images": h["images"], "flips_lost": h["lost"], "flips_won": h["won"]}
    held_back = [replace(rows[0], top1=h["dense_top1"]), replace(rows[place], **own)]
    said = chosen(held_back, min(place, 1), "winner")
    return replace(said, row=place if said.row else None)


def summary(study: Study) -> str:
    """In plain words: the answer, what was tried, what limited it, what it would cost to go further."""
    settings = study.settings
    parts = [f"# {settings.model} on {settings.target}, {settings.goal}", answer(study)]
    if any(r.figures.get("fake") for r in study.records):
        parts.append("FAKE: latencies are made up by a formula; nothing was measured.")
    parts += ["## What was tried", _tried(study), "## What limited it", _limits(study)]
    parts += ["## To go further", _further(study)]
    return "\n\n".join(parts) + "\n"


def answer(study: Study) -> str:
    """The first sentences."""
    winner = study.winner
    if winner is None:
        return f"Nothing that was tried meets {study.settings.goal}. The front in front.csv is what there is."
    f, h = winner.figures, study.holdout
    options = "".join(f" with {k}={v}" for k, v in winner.options.items())
    text = f"Take `{winner.reduce}` in {winner.precision}{options}"
    if winner.reduce == "none":
        text = f"Do not reduce: take the dense model in {winner.precision}{options}"
        tried = any(r.reduce != "none" for r in study.records)
        text += (
            "; no reduced engine that is accurate enough was surely faster"
            if tried
            else "; no reduced one was tried yet"
        )
    speed = f"{f['ratio']:.2f} times as fast as dense {_base_name(study)}{_interval(f['ratio_ci95'], 2)}"
    if study.base and winner.place == study.base.place:
        speed = f"it is what all are compared with ({speed}: what measuring it twice differs by)"
    lines = [f"{text}. It is in `winner/`.", ""]
    lines.append(f"- Speed: {speed}, {f['median_ms']:.3g} ms, measured side by side on {f['meter']}.")
    lines.append(
        f"- Accuracy: loses {h['drop']:.2f} points{_interval(h['drop_ci95'], 2)} on {h['images']} images that took no "
        f"part in the search ({h['dense_top1']:.2f} % → {h['top1']:.2f} %; {h['lost']} lost, {h['won']} won); on the "
        f"{f['images']} search images {f['drop']:.2f}."
    )
    lines.append(
        f"- Near misses counted in part, which needs fewer images: it loses {h['smoothed_drop']:.2f} points"
        f"{_interval(h['smoothed_drop_ci95'], 2)} on the images held back, {f['smoothed_drop']:.2f} on the others."
    )
    limit = study.settings.goal.limit
    if study.settings.goal.kind == "max-drop" and loss(h) > limit:
        why = "the search images were kinder. A smaller --max-drop or more --eval images would tell."
        if h["smoothed_drop"] <= limit:
            why = "by the flips alone, its near misses keep to it. More --eval images would tell."
        lines.append(f"- On the images held back it loses more than the {limit:g} points asked: {why}")
    return "\n".join([*lines, "", "```", winner.command.replace(f"trial-{winner.trial}", "winner"), "```"])


def _base_name(study: Study) -> str:
    return study.base.precision if study.base else study.space.precisions[0]


def _interval(ends: Sequence[float | None], places: int) -> str:
    if ends[0] is None or ends[1] is None:
        return ""
    return f" (95 % interval {ends[0]:.{places}f} to {ends[1]:.{places}f})"


def _tried(study: Study) -> str:
    """Counts by method, with the best of each."""
    lines = ["| tokens | tried | built and measured | fastest that is accurate enough |", "|---|--:|--:|---|"]
    for name in ("none", *study.space.methods):
        own = [r for r in study.records if r.params["method"] == name]
        done = [r for r in own if r.state == "complete"]
        good = sorted((r for r in done if study.settings.goal.meets(r.figures)), key=lambda r: -r.figures["ratio"])
        best = f"{good[0].name}: {good[0].figures['ratio']:.2f} times" if good else "–"
        lines.append(f"| {'all kept' if name == 'none' else name} | {len(own)} | {len(done)} | {best} |")
    return "\n".join(lines)


def _limits(study: Study) -> str:
    """What ended the search, what was stopped where, what was not in the space."""
    lines = [f"- The search ended by: {study.stopped}."]
    ends = Counter((r.state, r.stopped_at) for r in study.records if r.state != "complete")
    for (state, look), count in ends.most_common():
        example = next(r for r in study.records if (r.state, r.stopped_at) == (state, look))
        lines.append(f"- {count} {state} at {look}, as {example.name}: {example.why}.")
    lines += [f"- Left out: {name}: {why}" for name, why in study.space.left_out.items()]
    return "\n".join(lines)


def _further(study: Study) -> str:
    """From what trials took."""
    from edgevit.tune.suggest import remaining

    left = remaining(study.space, study.settings.goal, study.records)
    count = len(study.records)
    seconds = sum(sum(r.seconds.values()) for r in study.records) / count if count else 0.0
    if not left:
        return "Nothing is left to try in this space."
    more = min(left, 20)
    return (
        f"{left} choices were not tried. A trial took {seconds:.0f} s on average: {more} more take about "
        f"{more * seconds / 60:.0f} minutes. The same command with a larger --budget goes on from here."
    )
