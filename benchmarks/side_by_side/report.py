"""Results as JSON records, and the records as Markdown: one table of times, one of memory, and why a cell is empty."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from side_by_side.rounds import Outcome

OURS = "taia-lens"
PACKAGES = ("taia-lens", "torch", "transformers", "transformer-lens", "nnsight", "pyvene")
BLOCK = re.compile(r"(?<=<!-- sweeps: begin -->\n).*(?=<!-- sweeps: end -->)", re.DOTALL)
Record = dict[str, Any]


def machine(device: str, dtype: str, threads: int) -> Record:
    """Where and with what a run is made."""
    found = {"device": device, "dtype": dtype, "cores": os.cpu_count(), "threads": threads, "versions": _versions()}
    if device == "cpu":
        return {"name": _processor()} | found
    import torch

    return {"name": torch.cuda.get_device_name()} | found


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    """What of this package was measured; `-dirty` where code differs from that commit (tables that this run writes do not count)."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()

    at = git("rev-parse", "--short", "HEAD")
    return (at + "-dirty" * bool(git("diff", "--name-only", "HEAD", "--", ":(top)*.py"))) or "unknown"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")


def record(outcome: Outcome, *, model: str, title: str, sweep: str, words: str, batch: str, where: Record) -> Record:
    """One sweep on one model, as it is kept; `where` is what `machine` gave."""
    return {
        "model": model,
        "title": title,
        "sweep": sweep,
        "words": words,
        "batch": batch,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": where,
        "recipes": outcome.recipes,
        "work": outcome.work,
        "plain_seconds": outcome.plain,
        "contenders": {name: vars(found) for name, found in outcome.contenders.items()},
    }


def merged(old: Iterable[Record], new: Sequence[Record]) -> list[Record]:
    """The old records, each in its place or what was measured in its stead, and then those that are new."""
    found = {_key(one): one for one in old}
    return list((found | {_key(one): one for one in new}).values())


def _key(one: Record) -> tuple[str, ...]:
    return one["machine"]["device"], one["machine"]["dtype"], one["model"], one["sweep"]


def save(records: Sequence[Record], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(records), indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> list[Record]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def write_block(readme: Path, text: str) -> None:
    """Put the tables between the markers."""
    readme.write_text(BLOCK.sub(lambda _: text, readme.read_text(encoding="utf-8")), encoding="utf-8")


def limit(one: Record) -> float:
    """Seconds that the work of the plan takes at the plain forward's throughput, as a median over rounds."""
    return one["work"] * statistics.median(one["plain_seconds"])


def median(one: Record, name: str) -> float | None:
    times = one["contenders"].get(name, {}).get("seconds")
    return statistics.median(times) if times else None


def ratio(one: Record, name: str, to: str) -> float | None:
    """How many times as long as `to`: the median of the rounds' own ratios, so that a slow minute counts on both sides."""
    found, base = (one["contenders"].get(n, {}).get("seconds") for n in (name, to))
    return statistics.median(a / b for a, b in zip(found, base, strict=True)) if found and base else None


def to_limit(one: Record, name: str) -> float | None:
    """How many times the limit, from the rounds' own ratios."""
    times = one["contenders"].get(name, {}).get("seconds")
    return statistics.median(t / (one["work"] * p) for t, p in zip(times, one["plain_seconds"], strict=True)) if times else None


def markdown(records: Sequence[Record]) -> str:
    """All tables, grouped by machine and day, then by model."""
    out = []
    for where, group in _grouped(records, lambda one: (json.dumps(one["machine"]), one["date"])):
        out += [_said(group[0]["machine"], where[1], group), ""]
        for _, sweeps in _grouped(group, lambda one: (one["model"],)):
            batches = dict.fromkeys(one["batch"] for one in sweeps)
            out += [f"**{sweeps[0]['title']}**, {'; by position, '.join(batches)}. Seconds:", "", *_times(sweeps), ""]
            out += ["Peak memory above the loaded models, MB:", "", *_memory(sweeps), ""]
        out += [*_reasons(group), ""]
    return "\n".join(out) or "Nothing was measured yet.\n"


def brief(records: Sequence[Record]) -> str:
    """For the project's README, on a CPU: this package's seconds, and how many times as long the others take, each in its fastest form."""
    forms = {"TransformerLens": "TransformerLens", "nnsight": "nnsight", "pyvene": "pyvene", "by hand": "a loop by hand"}
    rows = [["", "sweep", f"{OURS}, s", *forms.values(), "the limit"]]
    for one in (one for _, group in _grouped(records, lambda one: (one["model"],)) for one in group):
        if one["machine"]["device"] == "cpu":
            times = {name: [r for n in one["contenders"] if n.startswith(name) and (r := ratio(one, n, OURS))] for name in forms}
            cells = ["" if not found else f"{min(found):.1f}x" for found in times.values()]
            ours = _number(median(one, OURS) or 0.0)
            rows.append([one["title"].partition(" (")[0], one["words"], ours, *cells, f"{1 / (to_limit(one, OURS) or 1.0):.1f}x"])
    return "\n".join(_table(rows)) + "\n"


def _grouped(records: Iterable[Record], key: Callable[[Record], tuple[str, ...]]) -> Iterator[tuple[tuple[str, ...], list[Record]]]:
    """In the order in which the groups first come."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for one in records:
        found.setdefault(key(one), []).append(one)
    yield from found.items()


def _said(where: Record, date: str, group: Sequence[Record]) -> str:
    versions = ", ".join(f"{name} {found}" for name, found in where["versions"].items())
    rounds = len(group[0]["plain_seconds"])
    torch_is = f"{where['threads']} torch threads, {where['device']}, {where['dtype']}"
    commits = ", ".join(dict.fromkeys(one.get("commit", "unknown") for one in group))
    return f"{date}, {where['name']}, {where['cores']} cores, {torch_is}; {versions}, at commit {commits}. Medians of {rounds} rounds."


def _names(group: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for one in group for name in one["contenders"]))


def _times(group: Sequence[Record]) -> list[str]:
    others = [name for name in _names(group) if name != OURS]
    rows = [["sweep", "recipes", "work, forwards", "limit", OURS, *others]]
    for one in group:
        ours = _cell(median(one, OURS), to_limit(one, OURS))
        cells = [_cell(median(one, name), ratio(one, name, OURS)) for name in others]
        rows.append([one["words"], str(one["recipes"] or ""), f"{one['work']:.1f}", _number(limit(one)), ours, *cells])
    return _table(rows)


def _memory(group: Sequence[Record]) -> list[str]:
    names = _names(group)
    rows = [["sweep", *names]]
    for one in group:
        found = [one["contenders"].get(name, {}).get("peak_bytes") for name in names]
        rows.append([one["words"], *("" if b is None else f"{b / 1e6:.0f}" for b in found)])
    return _table(rows)


def _reasons(group: Sequence[Record]) -> list[str]:
    """Each reason once, with the sweeps that it leaves empty."""
    where: dict[tuple[str, str], dict[str, None]] = {}
    for one in group:
        for name, found in one["contenders"].items():
            if found["reason"]:
                where.setdefault((name, found["reason"]), {})[one["words"]] = None
    return ["Empty cells:", "", *(f"- {name}, {'; '.join(sweeps)}: {why}" for (name, why), sweeps in where.items())] if where else []


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _cell(seconds: float | None, times: float | None) -> str:
    if seconds is None:
        return ""
    return _number(seconds) + ("" if times is None else f" ({times:.2f})")


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
