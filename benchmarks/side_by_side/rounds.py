"""One sweep by every contender: first the numbers, which must agree, then memory, then time, in rounds that take turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from side_by_side.contenders import Contender, Job
from side_by_side.memory import peak_bytes
from side_by_side.models import Setting
from side_by_side.questions import Sweep
from taia_lens.engine import Reads, plan_recipes, run_plain

# Of the largest number of the sweep. float32: two attention kernels and two paddings were found to differ by 1e-6 to 1e-5 of it, and
# a patch left out, or at the wrong place, moves numbers by 1e-2 and more. bfloat16 has steps of 2^-8, and what they come to depends on
# the sweep (gradients are rounded more): there the bound is three times what the last two, the loop by hand under two attention
# kernels, differ by, but not less than this. Only gross errors show; the same code is held to float32's bound in the usual run.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2}
NOISES = 3
# The numbers of a sweep must differ from each other by this many tolerances, or their agreement would say nothing.
LEAST_SPREAD = {torch.float32: 10, torch.bfloat16: 2}


class DisagreementError(Exception):
    """Two contenders give different numbers: no time is worth printing."""


@dataclass
class Measured:
    """What one contender was found to take; `reason` where it has no such sweep."""

    reason: str | None = None
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    difference: float | None = None


@dataclass(frozen=True)
class Outcome:
    """One sweep on one model.

    Attributes:
        work: Forwards' worth that is left where work is shared.
        plain: Seconds of a plain forward of this package on the same batch, one a round.
        contenders: In the order in which they were given.
    """

    recipes: int
    work: float
    plain: list[float]
    contenders: dict[str, Measured]


def measure(setting: Setting, sweep: Sweep, contenders: Mapping[str, Contender], rounds: int, say: Callable[[str], None]) -> Outcome:
    """Everything about one sweep.

    Raises:
        DisagreementError: Two contenders' numbers differ by more than rounding.
    """
    jobs, found = _jobs(setting, sweep, contenders)
    values = {}
    for name in list(jobs):
        say(f"numbers of {name}")
        try:
            values[name] = jobs[name]().detach().cpu()
        except Exception as error:  # a peer that breaks on these versions is told, not hidden
            if not name.startswith(tuple(PEERS)):
                raise
            del jobs[name]
            found[name].reason = f"fails: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    for name, gap in check_equal(values, setting.base.dtype).items():
        found[name].difference = gap
    device = setting.pair.device.type
    gc.freeze()  # what the libraries hold is not searched for garbage before each run
    for name, job in jobs.items():
        say(f"memory of {name}")
        found[name].peak_bytes = peak_bytes(job, device)
    plain = []
    order = list(jobs)
    for number in range(rounds):
        plain.append(seconds(lambda: run_plain(setting.pair.base, sweep.batch), device))
        for name in order[number % len(order) :] + order[: number % len(order)]:
            say(f"round {number + 1} of {rounds}: {name}")
            found[name].seconds.append(seconds(jobs[name], device))
    gc.unfreeze()
    return Outcome(len(sweep.recipes), work(setting, sweep), plain, found)


def work(setting: Setting, sweep: Sweep) -> float:
    """Forwards' worth of the sweep where work is shared: what the engine's plan comes to.

    Attribution patching is a forward of each side and a backward; a backward to activations only costs about a forward.
    """
    if sweep.kind == "attribution":
        return 3.0
    return plan_recipes(setting.pair, sweep.recipes, Reads.last(sweep.batch)).work


PEERS = ("TransformerLens", "nnsight", "pyvene")


def _jobs(setting: Setting, sweep: Sweep, contenders: Mapping[str, Contender]) -> tuple[dict[str, Job], dict[str, Measured]]:
    jobs: dict[str, Job] = {}
    found: dict[str, Measured] = {}
    for name, contender in contenders.items():
        job = contender(setting, sweep)
        found[name] = Measured(job if isinstance(job, str) else None)
        if not isinstance(job, str):
            jobs[name] = job
    return jobs, found


def check_equal(values: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, float]:
    """The largest difference of each contender from the last one, the loop by hand, as a share of the sweep's largest number.

    Raises:
        DisagreementError: It is more than rounding, a shape differs, or the numbers are all alike, so that agreeing says nothing.
    """
    reference, wanted = list(values.items())[-1]
    second = list(values.values())[-2:][0]
    scale = wanted.abs().max()
    bound = TOLERANCE[dtype]
    if dtype != torch.float32:
        bound = max(bound, NOISES * float((second - wanted).abs().max() / scale))
    spread = float((wanted - wanted.mean(0)).abs().max() / scale)
    if not spread >= LEAST_SPREAD[dtype] * bound:
        raise DisagreementError(f"the numbers of this sweep lie within {spread:.1e} of each other, and are compared to {bound:.0e}")
    gaps = {}
    for name, value in values.items():
        if value.shape != wanted.shape:
            raise DisagreementError(f"{name} gives {tuple(value.shape)} numbers and {reference} {tuple(wanted.shape)}")
        gaps[name] = float((value - wanted).abs().max() / scale)
        if not gaps[name] <= bound:
            raise DisagreementError(
                f"{name} and {reference} differ by {gaps[name]:.1e} of the largest number; rounding explains {bound:.0e}"
            )
    return gaps


def seconds(job: Callable[[], object], device: str) -> float:
    """How long a job takes; what a GPU was asked to do is waited for."""
    gc.collect()
    wait(device)
    start = time.perf_counter()
    job()
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
