"""The shape of the package: imports point down, and what a shell needs at once is light. Each check is shown to be able to fail."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "taia_lens"

# Lowest first; a module imports from levels below its own only.
LEVELS: list[set[str]] = [
    {"errors", "files", "html"},
    {"budget", "sites", "metric_names", "stats", "answers", "images"},
    {"recipe", "rows"},
    {"recipe_text", "suite", "weights"},
    {"readers", "batch", "loaded", "results", "store"},
    {"pair", "scales", "examples", "positions"},
    {"grafting", "prompts"},
    {"engine", "players", "plots", "summaries", "tables"},
    {"check", "metrics", "cell_examples", "shown", "report"},
    {"evaluation", "explorer"},
    {"scoring"},
    {"lofit"},
    {"rankers"},
    {"loading", "studies", "harness"},
    {"demo", "export", "tuning", "lofit_paper"},
    {"cli"},
]
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}
# Modules that reports, tables and `--help` are made with: they must not wait for torch.
LIGHT = (
    "errors",
    "budget",
    "files",
    "answers",
    "html",
    "sites",
    "metric_names",
    "recipe",
    "rows",
    "suite",
    "readers",
    "stats",
    "results",
    "store",
    "plots",
    "tables",
    "summaries",
    "cell_examples",
    "explorer",
    "shown",
    "report",
    "images",
)
HEAVY = {"torch", "transformers", "transformer_lens", "peft", "safetensors"}


def imports(source: str, *, top_level_only: bool = False) -> Iterator[str]:
    """Dotted names that a module imports."""
    tree = ast.parse(source)
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(source: str) -> set[str]:
    """Of these, the package's own, by the name of their file or folder."""
    return {name.split(".")[1] for name in imports(source) if name.startswith("taia_lens.")}


def upward(module: str, source: str) -> set[str]:
    """What a module imports from its own level or above."""
    return {name for name in ours(source) if name != module and LEVEL[name] >= LEVEL[module]}


def modules() -> dict[str, list[Path]]:
    """Python files by top-level module of the package."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts != ("__init__",):
            found.setdefault(parts[0], []).append(path)
    return found


def test_every_module_has_a_level() -> None:
    assert set(modules()) <= set(LEVEL)
    assert {"errors", "sites", "engine", "studies", "loading"} <= set(modules())  # the package was found at all


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down(module: str) -> None:
    for path in modules()[module]:
        assert upward(module, path.read_text(encoding="utf-8")) == set(), path.name


def test_an_import_that_points_up_would_be_noticed() -> None:
    assert upward("sites", "from taia_lens.recipe import Recipe") == {"recipe"}
    assert upward("sites", "def f():\n    from taia_lens import engine") == {"engine"}
    assert upward("engine", "import taia_lens.check") == {"check"}
    assert upward("engine", "from taia_lens.sites import Site\nfrom taia_lens.engine.run import Run") == set()


def forbidden_to_studies(name: str, source: str) -> set[str]:
    """What a study may not import: a loader, the command line, another study."""
    dotted = [i for i in imports(source) if i.startswith("taia_lens.")]
    others = {i for i in dotted if i.startswith("taia_lens.studies.") and not i.startswith(f"taia_lens.studies.{name}")}
    return others | (ours(source) & {"loading", "cli", "plots", "demo"})


@pytest.mark.parametrize("path", sorted((PACKAGE / "studies").glob("*.py")), ids=lambda p: p.stem)
def test_a_study_imports_no_loader_no_command_and_no_other_study(path: Path) -> None:
    assert forbidden_to_studies(path.stem, path.read_text(encoding="utf-8")) == set()


def test_a_study_that_imports_another_would_be_noticed() -> None:
    assert forbidden_to_studies("heads", "from taia_lens.studies.patching import patch")
    assert forbidden_to_studies("heads", "from taia_lens.loading import load_pair")


def test_hooks_and_weights_are_touched_in_the_engine_only() -> None:
    words = (".hooks(", ".add_hook(", "register_forward", ".data = ", "__dict__[")
    found = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py") for w in words if w in p.read_text(encoding="utf-8")}
    # A pair points tensors that are equal in both models at one storage when it is joined, and an adapter is merged into a
    # copy of the base, whose weights are cast back before anyone else has seen it.
    engine = {f"engine/{name}.py" for name in ("run", "reads", "calls", "shared", "scaled", "moments", "gradients")}
    assert found == engine | {"pair.py", "loading/adapters.py"}


def heavy_imports(statement: str) -> set[str]:
    """Which heavy libraries are loaded by a statement, in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(*(name.split('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return HEAVY & set(done.stdout.split())


def test_what_a_shell_needs_at_once_imports_no_torch() -> None:
    light = [name for name in LIGHT if name in modules()]
    assert heavy_imports("import " + ", ".join(f"taia_lens.{name}" for name in light)) == set()


def test_an_import_of_torch_would_be_noticed() -> None:
    assert "torch" in heavy_imports("import taia_lens.batch")
