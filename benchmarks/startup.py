"""How long a user waits before anything begins: `import taia_lens` and `taia-lens --help`, each in processes of their own.

Run: python benchmarks/startup.py [--repeats N]. Prints a table: medians of interleaved repeats, beside the bare interpreter's,
and the targets, which are for a machine of 2 cores with nothing else to do.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "python -c pass": (["-c", "pass"], None),
    "import taia_lens": (["-c", "import taia_lens"], 0.3),
    "taia-lens --help": (["-c", "from taia_lens.cli import main; main()", "--help"], 0.4),
    "taia-lens patch --help": (
        ["-c", "from taia_lens.cli import main; main()", "patch", "--help"],
        None,
    ),  # typer loads pydantic here, where it is
}


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def medians(repeats: int) -> dict[str, float]:
    """Median seconds of each command; they take turns, so that a slow moment of the machine meets all of them."""
    for arguments, _ in COMMANDS.values():
        seconds(arguments)  # compiled files and the disk's cache
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, (arguments, _) in COMMANDS.items():
            found[name].append(seconds(arguments))
    return {name: statistics.median(times) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    found = medians(parser.parse_args().repeats)
    print("| command | median, s | target, s |\n|---|---|---|")
    for name, value in found.items():
        target = COMMANDS[name][1]
        print(f"| `{name}` | {value:.3f} | {'' if target is None else target} |")


if __name__ == "__main__":
    main()
