"""How memory is allocated, for whoever computes: Trainer and load_run ask for it."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache


@cache
def keep_freed() -> None:
    """Let glibc keep freed memory for the next step, instead of handing each activation back to the kernel.

    A step frees some hundred megabytes and asks for them again a moment later; by default every large block then comes
    from a new memory map, whose pages the kernel clears one by one: a third of an energy gradient's time on a CPU
    (`make bench` measures it). Results do not change. EBM_KEEP_MEMORY=0 leaves malloc alone, for machines short of memory.
    """
    TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h; other C libraries have no mallopt
    wanted = sys.platform == "linux" and os.environ.get("EBM_KEEP_MEMORY") != "0"
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if wanted else None
    if mallopt:
        mallopt(MMAP_THRESHOLD, 1 << 30)
        mallopt(TRIM_THRESHOLD, (1 << 31) - 1)
