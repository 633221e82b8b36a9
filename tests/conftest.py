"""Shared fixtures: one random pair per architecture, one suite, one batch. Nothing here, or in any test, needs the network."""

# ruff: noqa: E402 -- the environment and the import hook must be set before what they are for is imported

from __future__ import annotations

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import jaxtyping
from checked import check

# From here on every annotation of the package, shapes included, is checked at run time.
check("taia_lens")

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, make, make_tokenizer
from transformers import PreTrainedTokenizerBase

from taia_lens.batch import Batch, make_batches
from taia_lens.loading import load_pair
from taia_lens.pair import Pair
from taia_lens.suite import Suite, make_suite

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def pair_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], Pair]:
    """The random pair of an architecture: base is seed 0, tuned is seed 1, and nothing is equal in both."""

    @cache
    def build(name: str) -> Pair:
        return load_pair(make(name, 0), make(name, 1), tokenizer=tokenizer)

    return build


@pytest.fixture(scope="session", params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    """Each architecture in turn."""
    return request.param


@pytest.fixture(scope="session")
def pair(name: str, pair_of: Callable[[str], Pair]) -> Pair:
    return pair_of(name)


@pytest.fixture(scope="session")
def llama(pair_of: Callable[[str], Pair]) -> Pair:
    return pair_of("llama")


@pytest.fixture(scope="session")
def suite() -> Suite:
    """Eleven prompts of two to nine words, in no order of length, of both domains; each with a contrast."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(11):
        words = torch.randint(60, (2 + (5 * i) % 8,), generator=generator).tolist()
        rows.append(
            {
                "id": f"row-{i}",
                "prompt": " ".join(f"w{w}" for w in words),
                "answer": f" w{(7 * i) % 60}",
                "contrast": f" w{(7 * i + 1) % 60}",
                "domain": "id" if i % 3 else "ood",
            }
        )
    return make_suite("words", rows)


@pytest.fixture(scope="session")
def batch(suite: Suite, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """The whole suite as one batch: most rows are padded."""
    (whole,) = make_batches(suite, tokenizer, len(suite))
    return whole


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real models and data, kept beside the project; a machine without them skips, CI does not."""
    if not SHARED.is_dir():
        missing = f"no folder {SHARED.name} beside the project: the real checkpoint and texts are not here"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return SHARED


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations are not enforced, as for a user: what a wrong type does then is ours to say."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, unchecked: None
) -> Callable[..., tuple[int, str, str]]:
    """Run `taia-lens` in this process, in an empty folder: (exit code, stdout, stderr)."""
    from taia_lens import cli

    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["taia-lens", *args])
        with pytest.raises(SystemExit) as end:
            cli.main()
        found = capsys.readouterr()
        return int(end.value.code or 0), found.out, found.err

    return call
