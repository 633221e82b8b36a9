"""What the main job, `taia-lens patch --component mlp --layer 12`, spends its time on.

Run: python benchmarks/main_job.py [--own] [ARGUMENTS of taia-lens]. Prints one table that adds up to the whole: each moment,
sampled once a millisecond, belongs to an import, to the model's forward, or to the function of taia_lens that was at work, with
the libraries that it called. With --own: cProfile's functions by own time instead, and where taia_lens's own come among them.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import CodeType, FrameType

MAIN_JOB = ["patch", "--component", "mlp", "--layer", "12"]
PACKAGE = Path(__file__).resolve().parent.parent / "taia_lens"
TOP = 10
INTERVAL = 0.001


def job(arguments: list[str]) -> None:
    """Run `taia-lens` in this process, in an empty folder, without its output."""
    sys.argv = ["taia-lens", *arguments]
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nothing:
        os.chdir(folder)
        with redirect_stdout(nothing), redirect_stderr(nothing), suppress(SystemExit):
            from taia_lens import cli

            cli.main()
        os.chdir(PACKAGE.parent)


def belongs_to(frame: FrameType | None) -> str:
    """What a moment is spent on: the innermost import, forward or function of taia_lens that it lies in."""
    library = ""
    while frame is not None:
        code = frame.f_code
        path = Path(code.co_filename)
        if code.co_filename.startswith("<frozen importlib") or (PACKAGE in path.parents and code.co_name == "<module>"):
            return "imports"
        if code.co_name == "_call_impl" and path.match("torch/nn/modules/module.py"):
            return "the model's forward"
        if PACKAGE in path.parents:
            where = f"{path.relative_to(PACKAGE)}: {code.co_name}"
            return f"{library}, called by {where}" if library else f"taia_lens itself: {where}"
        library = library or _library(code)
        frame = frame.f_back
    return f"{library or 'python'}, called by none of ours"


def _library(code: CodeType) -> str:
    parts = Path(code.co_filename).parts
    if "site-packages" not in parts:
        return "python's own library"
    return parts[parts.index("site-packages") + 1].removesuffix(".py")


def sampled(arguments: list[str]) -> Counter[str]:
    """Seconds by what they were spent on."""
    spent: Counter[str] = Counter()
    ended = threading.Event()
    ident = threading.get_ident()

    def watch() -> None:
        before = time.perf_counter()
        while not ended.wait(INTERVAL):
            now = time.perf_counter()
            # All since the last look: native code that holds the interpreter is not seen until it lets go.
            spent[belongs_to(sys._current_frames()[ident])] += now - before
            before = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        job(arguments)
    finally:
        ended.set()
        watcher.join()
    return spent


def own_times(arguments: list[str]) -> None:
    profile = cProfile.Profile()
    profile.runcall(job, arguments)
    stats = pstats.Stats(profile)
    rows = sorted(((own, calls, at) for at, (_, calls, own, _, _) in stats.stats.items()), reverse=True)  # type: ignore[attr-defined]
    print("| rank | own, s | calls | function |\n|---|---|---|---|")
    ours = [i for i, (_, _, (file, _, _)) in enumerate(rows) if PACKAGE in Path(file).parents][:TOP]
    for i in [*range(TOP), *(i for i in ours if i >= TOP)]:
        own, calls, (file, line, name) = rows[i]
        short = "/".join(Path(file).parts[-3:]) + f":{line} " if file != "~" else ""
        print(f"| {i + 1} | {own:.3f} | {calls} | `{short}{name}`{' (ours)' if i in ours else ''} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--own", action="store_true")
    parser.add_argument("--top", type=int, default=2 * TOP)
    asked, arguments = parser.parse_known_args()
    if asked.own:
        own_times(arguments or MAIN_JOB)
        return
    spent = sampled(arguments or MAIN_JOB)
    whole = sum(spent.values())
    print(f"{whole:.2f} s in all\n\n| rank | s | share | what |\n|---|---|---|---|")
    for rank, (what, seconds) in enumerate(spent.most_common(asked.top), 1):
        print(f"| {rank} | {seconds:.2f} | {seconds / whole:.1%} | {what} |")


if __name__ == "__main__":
    main()
