"""Checkpoints that survive what happens to long runs: kill signals, full disks, torn files.

A file is written beside its place, forced to disk, then renamed: it is whole or absent. The newest two are
kept; a corrupt one is set aside and the one before is used.
"""
from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import torch

KEEP = 2


def save_atomic(state, path: Path) -> None:
    """torch.save that is whole or absent. Raises: OSError (a full disk, say) with the old file untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        with open(part, "wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as e:            # torch reports a failed write as RuntimeError
        part.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written ({e}); earlier checkpoints are intact. Free disk space and "
                      "run the same command again: it resumes.") from e


def save(state: dict, folder: Path, iteration: int) -> None:
    """Write the checkpoint of an iteration, then drop all but the newest KEEP."""
    save_atomic(state, folder / f"{iteration:08d}.pt")
    for old in _files(folder)[:-KEEP]:
        old.unlink()


def latest(folder: Path, device="cpu", upto: float = math.inf) -> dict | None:
    """The newest checkpoint that loads, or None. A corrupt file is renamed *.corrupt and reported; one of an iteration
    after `upto`, which another process of the same run lacks, is removed."""
    for path in reversed(_files(folder)):
        if int(path.stem) > upto:
            path.unlink()
            continue
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except Exception as e:                      # zip, pickle and EOF errors: torch raises many kinds
            print(f"checkpoint {path} is corrupt ({type(e).__name__}); using the one before", file=sys.stderr)
            path.rename(path.with_suffix(".corrupt"))
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pt")) if folder.exists() else []
