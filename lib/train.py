"""Train a run:  python -m lib.train jempp-m10 [--profile quick]

leaves artifacts/<profile>/<run>/seed<s>/ for each seed: weights.pt, buffer.pt (uint8), metrics.json, curve.csv (written
also while it trains), provenance.json, snapshots/. An interrupted run continues from its last checkpoint in scratch/ when
the same command is given again; a changed configuration starts afresh. With --minutes, it interrupts itself in time.

    torchrun --nproc-per-node=2 -m lib.train jempp-m10

trains the same run on two processes (one GPU each, where there are GPUs): update.batch images an update, half of them
each, a replay buffer of |B|/2 each, published as one. Batch norm sees each half's statistics.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from lib import ROOT, data, files, params
from lib.training import distributed
from lib.training.loop import OutOfTime, fit
from lib.training.provenance import fingerprint, provenance
from lib.training.trainer import Trainer, deterministic

UNFINISHED = 75  # exit status where --minutes ended a run early: sysexits.h's "try again later"


@contextlib.contextmanager
def _alone(path: Path, run: params.Run, device: torch.device) -> Iterator[None]:
    """The lock on a run's folder, which process 0 holds for all of the run's. Raises: RuntimeError where it is taken."""
    lock, free = FileLock(path), True
    try:
        if distributed.rank() == 0:
            lock.acquire(timeout=0)
    except Timeout:
        free = False
    if not distributed.least(free, device):
        raise RuntimeError(
            f"run {run.name} ({run.profile}) is being trained by another process (lock {path}): wait for it, "
            "or end it, then try again"
        )
    try:
        yield
    finally:
        lock.release()


def train(
    run: params.Run,
    device: str | None = None,
    artifacts: Path | None = None,
    scratch: Path | None = None,
    deadline: float | None = None,
) -> list[dict]:
    """Train every seed of a run, one folder each; returns their metrics. Where processes are joined
    (lib.training.distributed), all of them call this alike.

    Args:
        device: None: cuda where there is one.   deadline: by time.monotonic(); None: no end but the run's.
    Raises: DataError, ConfigError, OutOfTime, OSError, RuntimeError where another process is at work on the same run.
    """
    place = distributed.device(device)
    files.writable(*(Path(own or ROOT / name) for own, name in ((artifacts, "artifacts"), (scratch, "scratch"))))
    split = data.load(run.profile, run.data)
    digest = fingerprint(run)
    artifacts = Path(artifacts or ROOT / "artifacts") / run.profile / run.name
    scratch = Path(scratch or ROOT / "scratch") / run.profile / run.name
    scratch.mkdir(parents=True, exist_ok=True)
    deterministic()
    if run.threads:
        torch.set_num_threads(run.threads)
    with _alone(scratch.with_suffix(".lock"), run, place):
        results = []
        for seed in run.seeds:
            began = time.time()
            folder, work = artifacts / f"seed{seed}", scratch / digest / f"seed{seed}"
            trainer = Trainer(run, split, seed, place)
            folder.mkdir(parents=True, exist_ok=True)
            if not work.exists() and distributed.rank() == 0:  # begun afresh: another configuration's would stay
                shutil.rmtree(folder / "snapshots", ignore_errors=True)
            results.append(fit(trainer, folder, work, deadline=deadline))
            if distributed.rank() == 0:
                files.write_json(folder / "provenance.json", provenance(run, seed, trainer, time.time() - began))
        distributed.wait(place)
        if distributed.rank() == 0:
            shutil.rmtree(scratch, ignore_errors=True)
        return results


@files.command(params.ConfigError, RuntimeError)
def main() -> None:
    parser = argparse.ArgumentParser(description="Train a run of params.yaml.")
    parser.add_argument("run")
    parser.add_argument("--profile", choices=params.PROFILES)
    parser.add_argument("--device", help="cpu, cuda, ...; default: cuda where there is one")
    parser.add_argument(
        "--minutes",
        type=files.amount,
        help=f"then write a checkpoint and end with status {UNFINISHED}: the same command continues",
    )
    args = parser.parse_args()
    deadline = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    with distributed.joined(args.device) as device:
        try:
            _train_or_skip(params.run(args.run, args.profile), device, deadline)
        except OutOfTime as e:
            if distributed.rank() == 0:
                print(e, file=sys.stderr)
            sys.exit(UNFINISHED)


def _train_or_skip(run: params.Run, device: str | None, deadline: float | None) -> None:
    first = distributed.rank() == 0
    if params.data(run.profile, run.data) is None:  # a role that this profile does not have
        if first:
            reason = f"profile {run.profile} has no {run.data} data set"
            files.write_text(
                ROOT / "artifacts" / run.profile / run.name / "skipped.json", json.dumps({"skipped": reason}) + "\n"
            )
            print(f"{run.name}: skipped, {reason}")
        return
    for seed, m in zip(run.seeds, train(run, device, deadline=deadline), strict=True):
        if first:
            print(
                f"{run.name} seed {seed}: {m['verdict']}, {m['iterations']} iterations in {m['seconds']:.0f} s, "
                f"held-out accuracy {m['holdout_accuracy']}"
            )


if __name__ == "__main__":
    main()
