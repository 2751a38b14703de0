"""The companion's package: one room per part of an energy-based model.

    energy  +  where a chain starts  +  how it steps  +  what the loss is  +  how weights are updated
    energy.py        starts.py, buffer.py   samplers.py      losses.py              sam.py, train.py

Imports point one way: params, data, networks -> energy -> inits, samplers, buffer, losses -> train
-> metrics, plots -> book (the notebooks' side).
"""

import ctypes
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # every path of the project is anchored here


def _keep_memory() -> None:
    """Let glibc keep freed memory for the next step, in place of handing each activation back to the kernel.

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


_keep_memory()
