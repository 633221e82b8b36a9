"""The benchmark of sweeps: it runs, its contenders agree, and it notices where one does not. Times are not tested here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import Tensor

sys.path.insert(0, str(ROOT / "benchmarks"))

import orders
from side_by_side import figure, memory, report, rounds
from side_by_side.contenders import Job, by_hand, ours
from side_by_side.models import Setting, make_setting
from side_by_side.questions import SWEEPS, Sweep

BENCH = ROOT / "benchmarks"


@pytest.fixture(scope="module", params=["tiny", "tiny-gpt2"])
def setting(request: pytest.FixtureRequest) -> Setting:
    return make_setting(request.param)


def quiet(text: str) -> None:
    pass


@pytest.mark.slow
def test_a_quick_run_prints_every_sweep_and_writes_where_it_is_told_to(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/sweeps.py", "--quick", "--model", "tiny", "--threads", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    records = json.loads((tmp_path / "sweeps.json").read_text())
    assert [one["sweep"] for one in records] == list(SWEEPS)
    for one in records:
        assert one["words"] in done.stdout
        found = one["contenders"]["taia-lens"]
        assert len(found["seconds"]) == len(one["plain_seconds"]) == 2
        # A peer that is installed and breaks on these versions would be told by `fails`.
        assert not any((c["reason"] or "").startswith("fails") for c in one["contenders"].values()), one["contenders"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "cuda"], "no device cuda here"),
        (["--model", "8b"], "8b is too large for the cpu"),
        (["--rounds", "-1"], "both are 1 or more"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available() and "cuda" in options:
        pytest.skip("a GPU is here")
    from sweeps import parse

    with pytest.raises(SystemExit) as end:
        parse(options)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", list(SWEEPS))
def test_the_engine_and_the_loop_by_hand_agree(setting: Setting, name: str) -> None:
    sweep = SWEEPS[name](setting)
    jobs = [ours.shared(setting, sweep), by_hand.loop(setting, sweep, attention="eager")]
    values = [job() for job in jobs if not isinstance(job, str)]
    gaps = rounds.check_equal({"a": values[0], "b": values[1]}, torch.float32)
    assert max(gaps.values()) <= 2e-5  # a fifth of what a run allows


def broken(setting: Setting, sweep: Sweep) -> Job:
    """One patch left out."""
    right = ours.plain(setting, sweep)
    assert not isinstance(right, str)

    def job() -> Tensor:
        values = right().clone()
        values[0] = values[1]
        return values

    return job


def test_a_contender_with_wrong_numbers_is_not_timed(setting: Setting) -> None:
    sweep = SWEEPS["components"](setting)
    contenders = {"broken": broken, "by hand": partial(by_hand.loop, attention="sdpa")}
    with pytest.raises(rounds.DisagreementError, match="broken and by hand differ by"):
        rounds.measure(setting, sweep, contenders, 1, quiet)


def test_numbers_that_are_all_alike_prove_nothing() -> None:
    alike = torch.ones(4, 3) + 1e-5 * torch.rand(4, 3)
    with pytest.raises(rounds.DisagreementError, match="lie within"):
        rounds.check_equal({"a": alike, "b": alike.clone()}, torch.float32)


def test_a_peer_that_breaks_is_told_and_one_of_ours_is_not_hidden(setting: Setting) -> None:
    def breaks(setting: Setting, sweep: Sweep) -> Job:
        def job() -> Tensor:
            raise RuntimeError("no such\nattribute")

        return job

    sweep, loop = SWEEPS["components"](setting), partial(by_hand.loop, attention="sdpa")
    found = rounds.measure(setting, sweep, {"pyvene": breaks, "by hand": loop}, 1, quiet).contenders
    assert found["pyvene"].reason == "fails: RuntimeError: no such attribute"
    assert not found["pyvene"].seconds
    assert len(found["by hand"].seconds) == 1
    with pytest.raises(RuntimeError):
        rounds.measure(setting, sweep, {"plain plan": breaks, "by hand": loop}, 1, quiet)


def test_work_is_what_the_plan_comes_to_and_shares_some(setting: Setting) -> None:
    for name in ("components", "heads", "positions", "grafts", "masks"):
        sweep = SWEEPS[name](setting)
        assert 1 < rounds.work(setting, sweep) < len(set(sweep.recipes)) + 2  # the ends, base and tuned, are in it
    assert rounds.work(setting, SWEEPS["attribution"](setting)) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="the highest resident set is told by Linux")
def test_memory_is_what_a_job_takes_and_not_what_was_there() -> None:
    there = torch.zeros(2**25)  # 128 MiB, before
    peak = memory.peak_bytes(lambda: torch.ones(2**24).sum(), "cpu")
    assert peak is not None
    assert 0.95 * 2**26 <= peak <= 1.25 * 2**26  # the kernel counts pages in batches
    assert memory.peak_bytes(lambda: there[:10].sum(), "cpu") < 2**23


def some_record(model: str, sweep: str, seconds: list[float]) -> report.Record:
    timed = rounds.Outcome(
        4, 2.0, [1.0, 2.0, 3.0], {"taia-lens": rounds.Measured(None, seconds, 10**7, 0.0), "pyvene": rounds.Measured("has none")}
    )
    where = {"name": "a machine", "device": "cpu", "dtype": "float32", "cores": 2, "threads": 2, "versions": {"torch": "2"}}
    return report.record(timed, model=model, title=model, sweep=sweep, words=f"sweep {sweep}", batch="3 prompts", where=where)


def test_the_tables_hold_medians_and_ratios_of_rounds() -> None:
    one = some_record("m", "s", [3.0, 4.0, 60.0])
    assert report.limit(one) == 4
    assert report.to_limit(one, "taia-lens") == 1.5  # of 3/2, 4/4, 60/6
    text = report.markdown([one])
    assert "| sweep s | 4 | 2.0 | 4 | 4 (1.50) |  |" in text
    assert "| sweep s | 10 |  |" in text
    assert "- pyvene, sweep s: has none" in text
    assert "Medians of 3 rounds" in text
    assert len(figure.figure([one]).data) == 2


def test_a_new_measurement_takes_the_place_of_the_old_one() -> None:
    old = [some_record("m", "s", [1.0] * 3), some_record("m", "t", [1.0] * 3)]
    new = some_record("m", "s", [2.0] * 3)
    assert report.merged(old, [new]) == [new, old[1]]
    assert report.markdown([*old, some_record("n", "s", [1.0] * 3), new]).count("**m**") == 1


@pytest.mark.parametrize(
    ("readme", "table"), [(BENCH / "README.md", report.markdown), (ROOT / "README.md", report.brief)], ids=["all", "brief"]
)
def test_the_readmes_show_what_was_kept(readme: Path, table: Callable[[Sequence[report.Record]], str]) -> None:
    found = report.BLOCK.search(readme.read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == table(report.load(BENCH / "sweeps.json"))


def test_the_table_of_orders_is_what_the_script_prints() -> None:
    values = orders.game(0, 1.0)
    assert orders.exact(values).sum() == pytest.approx(values[-1] - values[0])
    error, work = orders.measure(orders.pairs, 0.3, 8)
    printed = f"| 0.3 | 8 | with its reverse (taia-lens) | {error:.4f} | {work:.1f} | {error * work:.3f} |"
    assert printed in (BENCH / "README.md").read_text(encoding="utf-8")
