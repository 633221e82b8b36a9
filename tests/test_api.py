"""The package's front door: every public name is there, documented where it is defined, and importing it loads nothing heavy."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import taia_lens


@pytest.mark.parametrize("name", taia_lens.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    assert (inspect.getdoc(getattr(taia_lens, name)) or "").strip()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'patsch'"):
        taia_lens.patsch  # noqa: B018


def test_importing_the_package_loads_no_model_library() -> None:
    code = "import sys, taia_lens; sys.exit(str({'torch', 'transformers', 'numpy'} & set(sys.modules) or '') or 0)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    broken = subprocess.run([sys.executable, "-c", code.replace("taia_lens;", "taia_lens; taia_lens.Batch;")], capture_output=True)
    assert broken.returncode == 1  # the check can fail
