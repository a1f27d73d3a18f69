"""The report: one JSON file, whole after every stage, and a table for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commands.whole_files import write_whole_text

FORMAT = 1


def write_report(path: Path, head: dict[str, Any], entries: Sequence[dict[str, Any]], finished: bool) -> dict[str, Any]:
    """Write and return the report.

    Args:
        path: of the JSON file.
        head: command, commit, machine.
        entries: of the stages.
        finished: whether all of them have had their turn.
    """
    report = {**head, "format": FORMAT, "finished": finished, "stages": list(entries)}
    write_whole_text(path, json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Lines: each stage with its status, and below it its targets and what it says for itself."""
    width = max((len(entry["title"]) for entry in entries), default=0)
    lines = []
    for entry in entries:
        seconds = f"{entry['seconds']:6.1f} s" if "seconds" in entry else " " * 8
        line = f"{entry['title']:{width}}  {entry['status']:8} {seconds}"
        lines.append(line + (f"  {_shortened(entry['reason'])}" if entry.get("reason") else ""))
        lines += [f"  {_target_line(target)}" for target in entry.get("targets", ())]
        lines += [f"  {_shortened(line)}" for line in entry.get("figures", {}).get("lines", ())]
    return lines


def _target_line(target: dict[str, Any]) -> str:
    value = "no number" if target["value"] is None else f"{target['value']:.3f}"
    sign = "≥" if target["at_least"] else "≤"
    return f"{'met   ' if target['met'] else 'MISSED'} {target['name']}: {value} ({sign} {target['bound']:g})"


def _shortened(text: str, length: int = 160) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
