"""What a shell waits for: `import taia_lens` and `taia-lens --help` load next to nothing. Which modules, not which times: those
are in `python benchmarks/startup.py`, beside their targets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The model libraries, the numbers and the pictures.
HEAVY = {
    "torch", "transformers", "transformer_lens", "peft", "accelerate", "safetensors", "tokenizers", "datasets", "einops", "jaxtyping",
    "numpy", "scipy", "sklearn", "xarray", "pandas", "h5py", "h5netcdf", "plotly", "tqdm", "jinja2", "sqlite3",
}  # fmt: skip
HELP = """
import sys
from taia_lens import cli
sys.argv = ["taia-lens", *{arguments}]
try:
    cli.main()
except SystemExit as end:
    assert not end.code, end.code
"""


def loaded(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after the code, itself without any."""
    code = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [["--help"], ["patch", "--help"], ["lofit", "--help"], ["suite", "make", "--help"]], ids=" ".join)
def test_help_loads_no_library_but_typer(arguments: list[str]) -> None:
    found = loaded(HELP.format(arguments=arguments))
    assert found & HEAVY == set()
    if arguments == ["--help"]:  # elsewhere typer looks for pydantic and loads it where it is
        assert found & {"pydantic", "importlib.metadata"} == set()
    assert "typer" in found and "taia_lens.cli.patch" in found  # the command was there at all


def test_importing_the_package_loads_none_of_its_modules() -> None:
    found = loaded("import taia_lens")
    assert {name for name in found if name.startswith("taia_lens.")} == set()
    assert found & HEAVY == set()


@pytest.mark.parametrize(("statement", "library"), [("import taia_lens.results", "numpy"), ("import taia_lens; taia_lens.Batch", "torch")])
def test_a_heavy_import_would_be_noticed(statement: str, library: str) -> None:
    assert library in loaded(statement)


def test_the_times_are_printed_beside_their_targets() -> None:
    done = subprocess.run([sys.executable, "benchmarks/startup.py", "--repeats", "1"], capture_output=True, text=True, check=True, cwd=ROOT)
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["`python -c pass`", "`import taia_lens`", "`taia-lens --help`", "`taia-lens patch --help`"]
    assert [row[2:] for row in rows[1:3]] == [["0.3"], ["0.4"]] and all(float(row[1]) > 0 for row in rows)
