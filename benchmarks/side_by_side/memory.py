"""The most memory that a job takes above what is loaded before it begins."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(job: Callable[[], object], device: str) -> int | None:
    """Run a job: what its tensors took on a GPU, or how far the resident set of the process rose; None where that is not told.

    Linux keeps the highest resident set and forgets it when 5 is written to clear_refs; what the C library holds back of memory
    freed earlier is given back first, so that it cannot hide what the job takes.
    """
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return torch.cuda.max_memory_allocated() - before
    if sys.platform != "linux" or not RESET.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")
    before = _kept("VmRSS")
    job()
    return max(0, _kept("VmHWM") - before)


def _kept(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
