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

from lib import params

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


def begin_from(model: torch.nn.Module, path: Path, where: str) -> None:
    """Load the weights.pt of another run of the same network. The layer `head` stays as initialised where its shape
    differs: another number of classes.

    Args:
        where: the setting that names the file, for errors.
    Raises: ConfigError where the file is missing, damaged, or of another network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise params.ConfigError(f"{where}: {path} is missing; expected a run's weights.pt, or null") from None
    except Exception as e:                              # zip, pickle and EOF errors: torch raises many kinds
        raise params.ConfigError(f"{where}: {path} is damaged or holds no weights ({type(e).__name__}); expected a run's "
                                 "weights.pt: make it again, or set null") from e
    own = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    has = {k: tuple(getattr(v, "shape", ())) for k, v in state.items()} if isinstance(state, dict) else {}
    head = {k for k in own if k.startswith("head.")}
    if any(k in has and has[k] != own[k] for k in head):
        state = state | {k: model.state_dict()[k] for k in head}
        has |= {k: own[k] for k in head}
    if wrong := next((k for k in sorted(own.keys() | has.keys()) if own.get(k) != has.get(k)), None):
        raise params.ConfigError(f"{where}: {path} is of another network: {wrong} is {has.get(wrong, 'missing')} there, "
                                 f"{own.get(wrong, 'missing')} here; expected weights of a network with the same settings")
    model.load_state_dict(state)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pt")) if folder.exists() else []
