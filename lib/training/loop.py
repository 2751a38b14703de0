"""The training loop, one for every method, resumable to the bit."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lib import files, params
from lib.files import DataError
from lib.parts.pixels import to_bytes
from lib.training import checkpoint, distributed
from lib.training.trainer import Trainer, logged

DIVERGED = 1e8  # |loss| above which the official codes call a run diverged
WATCHED = 5  # seconds between two looks that curve.csv allows at a run that trains


class OutOfTime(RuntimeError):
    """The deadline passed before the run's end. A checkpoint is written: the same call, or command, continues."""


def fit(
    trainer: Trainer,
    folder: Path,
    scratch: Path,
    on_log: Callable[[Trainer, dict], None] | None = None,
    deadline: float | None = None,
) -> dict:
    """Train to the end, or to a divergence; returns the metrics that are written to folder/metrics.json.

    Args:
        folder: for weights.pt, buffer.pt, curve.csv (also while it trains), snapshots/.   scratch: for checkpoints, from
        the newest of which it continues.
        on_log: called with the trainer and each row of the curve.   deadline: by time.monotonic(); None: none.
    Raises: OutOfTime at the deadline; ConfigError where the run was begun by another number of processes; DataError where
        what it would continue from is of another version.
    """
    course = Course(trainer, folder, scratch)
    course.begin()
    while trainer.iteration < trainer.iterations and course.verdict == "finished":
        numbers = course.advance()
        if (bad := _first_bad(numbers["loss"])) is not None:
            course.diverge(numbers["loss"], bad)
            continue
        row = course.log(numbers)
        if on_log and course.first:
            on_log(trainer, row)
        course.keep(deadline)
    return course.end()


def _first_bad(losses: list[float]) -> int | None:
    return next((j for j, v in enumerate(losses) if not abs(v) <= DIVERGED), None)


class Course:
    """One run on its way: the window of updates since the device was last waited for, the curve so far, the divergences."""

    def __init__(self, trainer: Trainer, folder: Path, scratch: Path):
        self.trainer, self.folder, self.scratch = trainer, folder, _own_folder(trainer, scratch)
        self.first = distributed.rank() == 0
        self.rows: list[dict] = []
        self.divergences: list[int] = []
        self.verdict, self.shown = "finished", -math.inf

    def begin(self) -> None:
        """Continue from the newest checkpoint, or write one of the beginning."""
        run, trainer = self.trainer.run, self.trainer
        if state := _latest(self.scratch, trainer.device):
            self.rows, self.divergences = _resume(trainer, state, self.scratch)
            if self.first:
                print(f"{run.name}: resumed at iteration {trainer.iteration}", file=sys.stderr)
        else:
            self._checkpoint()
        self.bar = tqdm(
            total=trainer.iterations,
            initial=trainer.iteration,
            desc=run.name,
            unit="it",
            mininterval=0.5 if sys.stderr.isatty() else 20,
            file=sys.stderr,
            disable=not self.first,
        )
        self.began = time.perf_counter()

    def advance(self) -> dict[str, list[float]]:
        """Updates until numbers are due; their values, one of each an update: the one wait for the device."""
        trainer, run, window = self.trainer, self.trainer.run, list[dict[str, Tensor]]()
        while True:
            window.append(trainer.step())
            i = trainer.iteration
            if i % run.log_every == 0 or i % run.checkpoint_every == 0 or i == trainer.iterations or self._snapshot_due():
                break
        table = torch.stack([torch.stack(tuple(w.values())) for w in window])  # (window, numbers)
        distributed.average([table])
        values = dict(zip(window[0], table.T.tolist(), strict=True))
        now = time.perf_counter()
        trainer.seconds, self.began = trainer.seconds + now - self.began, now
        return values

    def diverge(self, losses: list[float], bad: int) -> None:
        """The window's update `bad` diverged: back to the last healthy checkpoint, and on from there, if the run may."""
        run, trainer = self.trainer.run, self.trainer
        at = trainer.iteration - len(losses) + bad + 1
        self.divergences.append(at)
        if self.first:
            self.bar.write(f"{run.name}: diverged at iteration {at} (loss {losses[bad]:.3g})", file=sys.stderr)
        rows = _roll_back(trainer, self.scratch, len(self.divergences))
        self.began, self.bar.n = time.perf_counter(), trainer.iteration
        if len(self.divergences) > run.rollbacks:
            self.verdict = f"diverged at iteration {at}"
        else:
            self.rows = rows

    def log(self, numbers: dict[str, list[float]]) -> dict:
        """A row of the curve: the window's means, and now and then the accuracy on held-out images."""
        trainer, run, i = self.trainer, self.trainer.run, self.trainer.iteration
        row = {k: sum(v) / len(v) for k, v in numbers.items()}
        row |= {"iteration": i, "epoch": i / trainer.stream.per_epoch, "seconds": trainer.seconds}
        row |= {"lr": trainer.optimizer.param_groups[0]["lr"]}
        if run.labelled:
            due = i % run.validate_every == 0 or i == trainer.iterations
            row["holdout_accuracy"] = trainer.holdout_accuracy() if due else math.nan
        self.began = time.perf_counter()  # validation is not training time
        self.rows.append(row)
        self.bar.update(len(numbers["loss"]))
        shown: dict[str, object] = {k: f"{row[k]:.3g}" for k in ("loss", "accuracy", "auc") if k in row}
        self.bar.set_postfix(shown, refresh=False)
        if self.first and self.began - self.shown > WATCHED:
            self._write_curve()
            self.shown = self.began
        return row

    def keep(self, deadline: float | None) -> None:
        """A snapshot where one is due, a checkpoint where one is due or time is up. Raises: OutOfTime."""
        trainer, run, i = self.trainer, self.trainer.run, self.trainer.iteration
        end = i == trainer.iterations
        if self._snapshot_due():
            _publish(trainer, self.folder / "snapshots" / f"{i:08d}")
        late = not end and deadline is not None and distributed.least(deadline - time.monotonic(), trainer.device) <= 0
        if late or (len(run.seeds) > 1 if end else i % run.checkpoint_every == 0):  # a seed that is done stays done
            self._checkpoint()
        if late:
            distributed.wait(trainer.device)  # the first to end would have torchrun end the others
            self.bar.close()
            raise OutOfTime(f"{run.name}: out of time at iteration {i} of {trainer.iterations}; the same command continues")

    def end(self) -> dict:
        """Publish weights, buffer, curve and metrics; returns the metrics."""
        self.bar.close()
        trainer = self.trainer
        held = [r["holdout_accuracy"] for r in self.rows if not math.isnan(r.get("holdout_accuracy", math.nan))]
        metrics = {
            "verdict": self.verdict,
            "iterations": trainer.iteration,
            "planned": trainer.iterations,
            "epochs": trainer.iteration / trainer.stream.per_epoch,
            "divergences": self.divergences,
            "seconds": trainer.seconds,
            "seconds_per_epoch": trainer.seconds / max(trainer.iteration, 1) * trainer.stream.per_epoch,
            "holdout_accuracy": held[-1] if held else None,
        }
        if self.first:
            self._disown()
        _publish(trainer, self.folder)
        if self.first:
            self._write_curve()
            files.write_json(self.folder / "metrics.json", metrics)
        return metrics

    def _write_curve(self) -> None:
        """The training curve. A run that diverged before its first window has a header only."""
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, columns(self.trainer.run), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in self.rows)
        self._disown()
        files.write_text(self.folder / "curve.csv", out.getvalue())

    def _disown(self) -> None:
        """What marks a result as whole comes last: an earlier run's would vouch for a mixture."""
        for old in (self.folder / "provenance.json", *self.folder.glob("*.part*")):  # and what a killed process left
            old.unlink(missing_ok=True)

    def _snapshot_due(self) -> bool:
        n = self.trainer.run.snapshots
        return bool(n) and self.trainer.iteration % max(1, self.trainer.iterations // n) == 0

    def _checkpoint(self) -> None:
        state = {**self.trainer.state_dict(), "rows": self.rows, "divergences": self.divergences}
        checkpoint.save(state, self.scratch, self.trainer.iteration)


def columns(run: params.Run) -> tuple[str, ...]:
    """Of curve.csv: what this run's cells log, named after what it is."""
    held = ("holdout_accuracy",) * run.labelled
    return ("iteration", "epoch", *logged(run), *held, "lr", "seconds")


def _roll_back(trainer: Trainer, scratch: Path, times: int) -> list[dict]:
    """Back to the last healthy checkpoint, with other random numbers: the same ones would diverge again."""
    state = _latest(scratch, trainer.device)
    if state is None:
        raise DataError(
            f"{trainer.run.name} diverged, and no checkpoint in {scratch} is intact: run the same command "
            "again, it begins at iteration 0"
        )
    rows, _ = _resume(trainer, state, scratch)
    trainer.rollbacks = times
    trainer.seed(1_000 * times + trainer.iteration)
    return rows


def _resume(trainer: Trainer, state: dict, scratch: Path) -> tuple[list[dict], list[int]]:
    """Put a checkpoint's state into the trainer; returns its rows and divergences."""
    try:
        rows, divergences = state.pop("rows"), state.pop("divergences")
        trainer.load_state_dict(state)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as e:
        raise DataError(
            f"{scratch} holds a checkpoint of another version ({type(e).__name__}): remove that folder, "
            "and the same command starts afresh"
        ) from e
    return rows, divergences


def _own_folder(trainer: Trainer, scratch: Path) -> Path:
    """Where this process keeps its checkpoints: scratch itself, or a folder of its own in it."""
    N, begun = distributed.world(), {int(p.name.split("of")[1]) for p in scratch.glob("rank*of*")}
    begun |= {1} if any(scratch.glob("*.pt")) else set()
    distributed.wait(trainer.device)  # all have looked before any of them writes
    if begun - {N}:
        raise params.ConfigError(
            f"{trainer.run.name}: begun by {max(begun - {N})} process(es), this is {N}; continue with "
            f"as many (torchrun --nproc-per-node), or remove {scratch} to start afresh"
        )
    return scratch if N == 1 else scratch / f"rank{distributed.rank()}of{N}"


def _latest(scratch: Path, device: torch.device) -> dict | None:
    """The newest checkpoint that every process has intact, or None."""
    upto = math.inf
    while True:
        state = checkpoint.latest(scratch, device, upto)
        at = state["iteration"] if state else -1
        upto = distributed.least(at, device)
        if distributed.least(at == upto, device):
            return state


def _publish(trainer: Trainer, folder: Path) -> None:
    """Weights, and all processes' parts of the buffer; process 0 writes."""
    images = distributed.gather(to_bytes(trainer.buffer.images, trainer.run.low)).cpu() if trainer.buffer else None
    if distributed.rank():
        return
    files.write_tensors(folder / "weights.pt", {k: v.cpu() for k, v in trainer.model.state_dict().items()})
    if images is not None:
        files.write_tensors(folder / "buffer.pt", images)
