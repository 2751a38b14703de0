"""Checkpoints that survive what happens to long runs: kill signals, full disks, torn files.

A checkpoint is whole or absent (lib.files). The newest two are kept; a corrupt one is set aside and the one before is
used.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch

from lib import files, params

KEEP = 2


def save(state: dict, folder: Path, iteration: int) -> None:
    """Write the checkpoint of an iteration, then drop all but the newest KEEP, and what a killed process left of one."""
    files.write_tensors(folder / f"{iteration:08d}.pt", state)
    for old in (*_files(folder)[:-KEEP], *folder.glob("*.part*")):
        old.unlink()


def latest(folder: Path, device: str | torch.device = "cpu", upto: float = math.inf) -> dict | None:
    """The newest checkpoint that loads, or None. A corrupt file is renamed *.corrupt and reported; one of an iteration
    after `upto`, which another process of the same run lacks, is removed.
    Raises: MemoryError, OSError where the machine fails, not the file: no checkpoint is set aside."""
    for path in reversed(_files(folder)):
        if int(path.stem) > upto:
            path.unlink()
            continue
        try:
            return files.read_tensors(path, "using the one before", device)
        except files.DataError as e:
            print(f"checkpoint {e}", file=sys.stderr)
            path.replace(path.with_suffix(".corrupt"))
    return None


def begin_from(model: torch.nn.Module, path: Path, where: str) -> None:
    """Load the weights.pt of another run of the same network. The layer `head` stays as initialised where its shape
    differs: another number of classes.

    Args:
        where: the setting that names the file, for errors.
    Raises: ConfigError where the file is missing, damaged, or of another network.
    """
    remedy = "expected a run's weights.pt, of a network with the same settings, or null"
    try:
        state = files.read_tensors(path, remedy)
        head = {k: v for k, v in model.state_dict().items() if k.startswith("head.")}
        if isinstance(state, dict) and any(k in state and _shape(state[k]) != _shape(v) for k, v in head.items()):
            state = state | head
        load_weights(model, state, path, remedy)
    except files.DataError as e:
        raise params.ConfigError(f"{where}: {e}") from None


def load_weights(model: torch.nn.Module, state: object, path: Path, remedy: str) -> None:
    """What was read from `path`, into the model. Raises: DataError where it is of another network, or not finite."""
    tensors = state if isinstance(state, dict) else {}
    own, has = ({k: _shape(v) for k, v in weights.items()} for weights in (model.state_dict(), tensors))
    if wrong := next((k for k in sorted(own.keys() | has.keys()) if own.get(k) != has.get(k)), None):
        raise files.DataError(
            f"{path} is of another network: {wrong} is {has.get(wrong, 'missing')} there, "
            f"{own.get(wrong, 'missing')} here; {remedy}"
        )
    if wrong := next((k for k, v in tensors.items() if not torch.isfinite(v).all()), None):
        raise files.DataError(f"{path} holds numbers that are not finite, in {wrong}: {remedy}")
    model.load_state_dict(tensors)


def _shape(x: object) -> tuple[int, ...] | str:
    return tuple(x.shape) if isinstance(x, torch.Tensor) else "no tensor"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pt")) if folder.exists() else []
