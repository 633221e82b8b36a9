"""What the tests check at every call of the package is checked indeed: types, shapes, fields; and is not where a test says so."""

from __future__ import annotations

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError

from taia_lens.check import ulps
from taia_lens.metrics import _kl
from taia_lens.pair import Pair
from taia_lens.sites import Site
from taia_lens.studies.drift import residual_measure


def test_a_wrong_type_is_refused(llama: Pair) -> None:
    with pytest.raises(BeartypeCallHintParamViolation, match="ulps"):
        ulps("zero", [])  # type: ignore[arg-type]
    with pytest.raises(BeartypeCallHintParamViolation, match="side"):
        llama.side(1)  # type: ignore[arg-type]


def test_a_wrong_field_is_refused() -> None:
    with pytest.raises(BeartypeCallHintParamViolation, match="Site"):
        Site("mlp", "12")  # type: ignore[arg-type]


def test_a_wrong_shape_is_refused() -> None:
    acts, mask = torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    assert residual_measure(acts, mask).shape == (2,)
    with pytest.raises(TypeCheckError, match=r"batch pos"):
        residual_measure(acts, mask[:, :2])


def test_an_alias_of_a_shape_counts() -> None:
    logits = torch.zeros(2, 5)
    with pytest.raises(TypeCheckError, match="batch d_vocab"):
        _kl(logits, logits[:1])


def test_nothing_is_checked_where_a_test_is_the_user(llama: Pair, unchecked: None) -> None:
    assert llama.side(1) is llama.tuned  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):  # torch's own
        residual_measure(torch.ones(2, 3, 4), torch.ones(2, 2, dtype=torch.bool))
