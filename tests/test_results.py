"""Results: read back as they were written, written whole or not at all, and summarised with the numbers that they hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from taia_lens.errors import ResultError
from taia_lens.results import check_out, load, patch_dataset, save, summary, whole_folder, write_run
from taia_lens.suite import make_suite

N = 40


@pytest.fixture
def result() -> xr.Dataset:
    """Two metrics, two components, two layers; the host scores 1, the donor 3, and site (c, l) recovers (c + l) / 4 of it."""
    rng = np.random.default_rng(0)
    suite = make_suite("s", [{"id": f"é{i}", "prompt": "p", "answer": " a", "domain": "ood" if i % 4 == 0 else "id"} for i in range(N)])
    noise = rng.normal(0, 0.1, (2, N))
    host, donor = 1 + noise, 3 + noise + rng.normal(0, 0.05, (2, N))
    share = np.add.outer(np.arange(2), np.arange(2)) / 4
    patched = host[:, None, None, :] + share[None, :, :, None] * (donor - host)[:, None, None, :] + rng.normal(0, 1e-3, (2, 2, 2, N))
    return patch_dataset(
        host,
        donor,
        patched,
        np.array([1e-6, 1e-6]),
        metrics=("logprob", "accuracy"),
        coords={"component": ("attn", "mlp"), "layer": (0, 5)},
        suite=suite,
        attrs={"study": "patch", "seed": 3, "positions": [0, -1], "fingerprint": {"base": "a", "tuned": "b"}},
    )


def test_a_result_reads_back_as_it_was(result: xr.Dataset, tmp_path: Path) -> None:
    save(result, tmp_path / "result.nc")
    for place in (tmp_path / "result.nc", tmp_path, str(tmp_path)):
        again = load(place)
        assert again.identical(result)
        assert again.attrs == result.attrs and again.attrs["positions"] == [0, -1] and again.attrs["versions"]["torch"]


def test_a_result_that_was_read_is_saved_again(result: xr.Dataset, tmp_path: Path) -> None:
    save(result.assign_attrs(seed=3, share=0.5, sizes=[1, 2]), tmp_path / "first.nc")
    again = load(tmp_path / "first.nc")
    save(again, tmp_path / "second.nc")
    assert load(tmp_path / "second.nc").attrs == again.attrs
    assert [type(again.attrs[name]) for name in ("seed", "share", "sizes")] == [int, float, list]


def test_saving_leaves_the_result_alone(result: xr.Dataset, tmp_path: Path) -> None:
    before = result.copy(deep=True)
    save(result, tmp_path / "result.nc")
    assert result.identical(before)


def test_a_nul_in_a_text_is_kept_visibly(result: xr.Dataset, tmp_path: Path) -> None:
    texts = np.array([["a\0b", "\0", "é", ""]] * 10, dtype=object).reshape(N)
    names = result.example.values.astype(object)
    names[3] = "x\0y"
    spoilt = result.assign(transcript=("example", texts)).assign_coords(example=names)
    save(spoilt, tmp_path / "result.nc")
    again = load(tmp_path)
    assert again.transcript.values.tolist() == [r"a\x00b", r"\x00", "é", ""] * 10
    assert again.example.values[3] == r"x\x00y" and again.example.values[2] == "é2"
    assert spoilt.transcript.values[0] == "a\0b"  # what is at hand stays as it was
    assert again.drop_vars(["transcript", "example"]).identical(result.drop_vars("example"))


def test_a_summary_reads_back_as_it_was(result: xr.Dataset, tmp_path: Path) -> None:
    table = summary(result)
    save(table, tmp_path / "result.nc")
    assert load(tmp_path).identical(table)


def test_what_is_no_result_is_refused(result: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"no result at .*; give a run folder"):
        load(tmp_path)
    (tmp_path / "result.nc").write_text("hello")
    with pytest.raises(ResultError, match=r"cannot read .*damaged or no result"):
        load(tmp_path)
    save(result, tmp_path / "cut.nc")
    (tmp_path / "cut.nc").write_bytes((tmp_path / "cut.nc").read_bytes()[:2000])
    with pytest.raises(ResultError, match="cannot read"):
        load(tmp_path / "cut.nc")


# Summaries


def test_a_summary_gives_means_effects_and_recovered_fractions_per_domain(result: xr.Dataset) -> None:
    table = summary(result)
    assert table.domain.values.tolist() == ["id", "ood"] and table.n.values.tolist() == [30, 10]
    for i, domain in enumerate(table.domain.values):
        part = result.isel(example=np.flatnonzero(result.domain.values == domain))
        here = table.isel(domain=i)
        np.testing.assert_allclose(here.host, part.host.mean("example"))
        np.testing.assert_allclose(here.gap, (part.donor - part.host).mean("example"), atol=1e-12)
        np.testing.assert_allclose(here.effect, (part.patched - part.host).mean("example"), atol=1e-12)
    share = np.add.outer(np.arange(2), np.arange(2)) / 4
    recovered = table.recovered.transpose("domain", "metric", "component", "layer").values
    np.testing.assert_allclose(recovered, np.broadcast_to(share, recovered.shape), atol=1e-3)
    assert table.defined.all()
    for end in ("effect", "recovered"):
        assert (table[f"{end}_low"] <= table[end]).all() and (table[end] <= table[f"{end}_high"]).all()


def test_the_effect_is_paired_by_example(result: xr.Dataset) -> None:
    # host and patched share noise of 0.1 per example; their difference has 0.03 at most, and the interval is of that.
    table = summary(result)
    widths = (table.effect_high - table.effect_low).sel(component="attn", layer=0)
    assert float(widths.max()) < 0.003


@pytest.mark.parametrize("why", ["no gap", "below noise"])
def test_no_fraction_is_recovered_of_a_gap_that_is_not_there(result: xr.Dataset, why: str) -> None:
    if why == "no gap":
        rng = np.random.default_rng(1)
        result = result.assign(donor=result.host + rng.normal(0, 0.1, result.host.shape))
    else:
        result = result.assign(noise=result.noise + 5.0)
    table = summary(result)
    assert not table.defined.any() and np.isnan(table.recovered).all() and np.isnan(table.recovered_low).all()
    assert not np.isnan(table.effect).any()  # the effect itself is still told


def test_one_example_has_means_and_no_interval(result: xr.Dataset) -> None:
    table = summary(result.isel(example=[0]))
    assert np.isnan(table.effect_low).all() and not np.isnan(table.effect).any() and not table.defined.any()


# Run folders


def test_a_run_folder_is_written_whole(result: xr.Dataset, tmp_path: Path) -> None:
    out = write_run(tmp_path / "deep" / "run", result, {"command": "x"}, {"notes.txt": lambda path: path.write_text("hi") and None})
    assert sorted(p.name for p in out.iterdir()) == ["meta.json", "notes.txt", "result.nc"]
    assert load(out).identical(result)
    assert sorted(p.name for p in out.parent.iterdir()) == ["run"]  # and nothing beside it


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_stop_while_writing_leaves_nothing(result: xr.Dataset, tmp_path: Path, raised: type[BaseException]) -> None:
    seen: list[Path] = []

    def stop(path: Path) -> None:
        seen.append(path)
        assert (path.parent / "result.nc").exists()  # something was there to be left behind
        raise raised("stop")

    with pytest.raises(ResultError if raised is OSError else raised):
        write_run(tmp_path / "run", result, {}, {"figure.html": stop})
    assert seen and list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np, xarray as xr
from taia_lens import results
result = xr.Dataset({"value": ("example", np.zeros(10_000))})
results.write_run(Path("allowed"), result, {}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
try:
    results.write_run(Path("run"), result, {}, {})
except results.ResultError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size")
@pytest.mark.parametrize("size", [100, 50_000])
def test_a_file_that_may_not_grow_is_one_line(tmp_path: Path, size: int) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", LIMITED, str(size)], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")  # HDF5 would crash when Python ends
    assert done.stdout == "cannot write run: File too large; nothing was left behind\n"
    assert [p.name for p in tmp_path.iterdir()] == ["allowed"]


def test_a_meta_that_cannot_be_written_leaves_nothing(result: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_run(tmp_path / "run", result, {"bad": object()}, {})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_never_overwritten(result: xr.Dataset, tmp_path: Path) -> None:
    out = write_run(tmp_path / "run", result, {"first": True}, {})
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(ResultError, match=r"run exists; give another --out"):
        write_run(out, result, {}, {})
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_a_folder_that_appears_while_writing_is_not_overwritten(result: xr.Dataset, tmp_path: Path) -> None:
    def other_run(path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "theirs").write_text("kept")

    with pytest.raises(ResultError):
        write_run(tmp_path / "run", result, {}, {"figure.html": other_run})
    assert [p.name for p in tmp_path.iterdir()] == ["run"] and (tmp_path / "run" / "theirs").read_text() == "kept"


def test_a_parent_that_cannot_be_written_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match=r"cannot write .* is a file, not a folder; give another --out"):
        check_out(tmp_path / "file" / "run")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere, so the answer is made up
    with pytest.raises(ResultError, match="no permission in"):
        check_out(tmp_path / "deep" / "run")


def test_a_free_place_is_not_refused(tmp_path: Path) -> None:
    check_out(tmp_path / "a" / "b" / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_may_be_read_by_those_whom_the_umask_lets(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "run") as folder:
        (folder / "private").write_text("x")
        (folder / "private").chmod(0o600)
    before = os.umask(0o022)
    os.umask(before)
    assert (tmp_path / "run" / "private").stat().st_mode & 0o777 == 0o666 & ~before
