"""Sites: what can be named, how it is written, and what is said where it cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taia_lens.errors import SiteError
from taia_lens.sites import COMPONENTS, GRAFTABLE, PATCHABLE, Site, component, parse_positions, parse_sites, parse_span, select


def test_the_table_says_what_can_be_patched_and_what_grafted() -> None:
    assert set(PATCHABLE) <= {name for name, row in COMPONENTS.items() if row.hook is not None}
    assert GRAFTABLE == ("embed", "attn", "mlp", "norms", "unembed")
    modules = [module for row in COMPONENTS.values() for module in row.modules]
    assert len(modules) == len(set(modules))  # no module belongs to two components


@given(st.sampled_from(("attn", "mlp", "resid")), st.integers(0, 300), st.integers(0, 300))
def test_a_site_reads_back_from_its_text(name: str, layer: int, head: int) -> None:
    for site in (Site(name, layer), Site("head", layer, head), Site("embed")):
        assert parse_sites(str(site)) == (site,)
        assert str(layer) in site.hook or site.layer is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("L2-4.attn", ["L2.attn", "L3.attn", "L4.attn"]),
        ("L0-1.h2-3", ["L0.h2", "L0.h3", "L1.h2", "L1.h3"]),
        (" L7.resid ", ["L7.resid"]),
        ("unembed", ["unembed"]),
    ],
)
def test_ranges_are_read_in_order(text: str, names: list[str]) -> None:
    assert [str(site) for site in parse_sites(text)] == names


@pytest.mark.parametrize(
    "text", ["", "12.mlp", "L.mlp", "L1", "L1.", "l1.mlp", "L1.mlp.h2", "L-1.mlp", "L1.h", "L1.head", "mlp", "L1 .mlp", "L1.H2"]
)
def test_what_is_no_site_is_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(SiteError, match=r"L12.mlp|L1.h0|no component"):
        parse_sites(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L1.ffn", r"no component 'ffn'; there are embed, attn, mlp, head, resid, norms, unembed"),
        ("L1.embed", r"embed.*has no layer"),
        ("L5-3.mlp", r"runs backwards; write 3-5"),
        ("L0.h3-1", r"runs backwards; write 1-3"),
    ],
)
def test_a_site_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        parse_sites(text)


def test_a_site_made_in_python_is_checked_too() -> None:
    for args, message in (
        (("mlp",), "name a layer"),
        (("embed", 3), "has no layer"),
        (("head", 3), r"a head is written L3.h0"),
        (("mlp", 3, 1), "only heads have a number"),
        (("ffn", 3), "no component 'ffn'; there are"),
    ):
        with pytest.raises(SiteError, match=message):
            Site(*args)
    with pytest.raises(SiteError, match="norms has weights but no activation to patch; patch one of attn, mlp, head, resid"):
        _ = Site("norms").hook
    with pytest.raises(SiteError, match="no component 'nope'"):
        component("nope")


@given(st.sets(st.integers(0, 40), min_size=1))
def test_select_gives_back_what_exists_in_order(asked: set[int]) -> None:
    expected = tuple(sorted(asked))
    assert select(list(asked), 41, "layer") == select(",".join(map(str, asked)), 41, "layer") == expected
    with pytest.raises(SiteError, match=rf"this model has {max(asked)} layer|no layer was named|has 1 layer"):
        select(list(asked), max(asked), "layer")  # the highest no longer exists


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("7", r"no layer 7: this model has 3 layers, 0-2"),
        (-1, r"no layer -1: this model has 3 layers, 0-2"),
        ([], r"no layer was named; write a number, a range or all"),
        ("one", r"cannot read the layer 'one'; write a number, a range or a list"),
        ("1,,2", r"cannot read the layer '1,,2'"),
        ("2-1", r"runs backwards; write 1-2"),
    ],
    ids=str,
)
def test_what_select_cannot_find_is_refused_with_what_there_is(asked: object, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        select(asked, 3, "layer")  # type: ignore[arg-type]


def test_all_is_all() -> None:
    assert select("all", 3, "head") == select(None, 3, "head") == (0, 1, 2) and select(1, 3, "head") == (1,)
    assert parse_span("0, 3,8-9", "layer") == (0, 3, 8, 9)


@pytest.mark.parametrize(
    ("asked", "read"), [("all", "all"), ("last", "last"), (3, (3,)), ("0,-1", (0, -1)), (" 2 , 3 ", (2, 3)), ([1, -2], (1, -2))]
)
def test_positions_are_read(asked: object, read: object) -> None:
    assert parse_positions(asked) == read  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", ["", "first", "1-3", "1,", "1.5", []], ids=str)
def test_what_is_no_position_is_refused(asked: object) -> None:
    with pytest.raises(SiteError, match="write all, last, or numbers"):
        parse_positions(asked)  # type: ignore[arg-type]
