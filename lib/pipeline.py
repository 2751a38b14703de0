"""The pipeline of dvc.yaml, stages side by side:

    python -m lib.pipeline                       all that is out of date, as `dvc repro` would, on every core
    python -m lib.pipeline train@jempp-m5        one stage (or some: 'train@*', 'notebook@05*') and what it needs
    python -m lib.pipeline --jobs 1              one stage after another

DVC decides what is out of date, hashes, caches and writes dvc.lock, in this process; only the stages' commands run
elsewhere. `python -m lib.X ...` starts in a copy of a process that has imported torch already, where the system can
fork: a stage of the smoke profile takes a second, and its imports take several. Each stage's output goes to
scratch/logs/<stage>.log. A second `dvc repro` or pipeline at the same time is refused by DVC's own locks.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import logging
import multiprocessing
import multiprocessing.connection
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib import ROOT, files

if TYPE_CHECKING:  # half a second to import
    from dvc.stage import PipelineStage

LOGS = ROOT / "scratch" / "logs"
FIRST = "notebook@01_energies_in_2d"  # its pictures need no trained run
KINDS = ("data", FIRST, "train", "evaluate", "apply")  # the first pictures early; then what others wait for
MEMORY = 1.0  # GB that one stage may need: 0.65 measured
PRELOADED = ("torch", "numpy", "scipy.linalg", "yaml", "pydantic", "filelock", "tqdm")  # never lib, which may be edited
QUIET = 60.0  # seconds without a word, after which the stages at work are named
LOCK_SHARE = 20  # DVC parses and writes all of dvc.lock each time, seconds: at most a twentieth of the time


class Failed(RuntimeError):
    """Stages that ended with an error, what else was at work having been finished and recorded; or DVC's own refusal."""


# ------------------------------------------------------------------------------------------ how many side by side
def jobs(given: str | None = None) -> int:
    """How many stages run side by side: `given`, else $JOBS, else the cores that this process may use, one GB of memory
    for each; one where there is a GPU to share. Raises: ValueError for anything but a whole number, at least 1."""
    if given := given or os.environ.get("JOBS"):
        if not given.isdigit() or int(given) < 1:
            raise ValueError(f"jobs {given!r}: expected the number of stages to run side by side, at least 1")
        return int(given)
    return 1 if shutil.which("nvidia-smi") else max(1, min(cores(), int(memory() / MEMORY)))


def cores() -> int:
    """Processors that this process may use: the machine's, less those that its affinity or its container withholds."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _control("cpu.max").partition(" ")  # of a container: "200000 100000", or "max 100000"
    if not quota:  # Linux's older control groups; -1: no limit
        quota, period = _control("cpu/cpu.cfs_quota_us"), _control("cpu/cpu.cfs_period_us")
    return min(allowed, max(1, int(quota) // int(period))) if quota.isdigit() and period else allowed


def memory() -> float:
    """GB of memory that are free for this process."""
    import psutil

    free, limit, used = psutil.virtual_memory().available, _control("memory.max"), _control("memory.current")
    return min(free, int(limit) - int(used or 0) if limit.isdigit() else free) / 1e9


def _control(name: str) -> str:
    """A file of Linux's control group, '' where there is none."""
    try:
        return Path("/sys/fs/cgroup", name).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


# ------------------------------------------------------------------------------------------------ a stage's command
def execute(command: str, log: Path) -> None:
    """Run a command in this process if it is `python -m MODULE ...`, else in a shell; its output goes to `log`."""
    with log.open("w", encoding="utf-8") as out:
        for stream in (1, 2):
            os.dup2(out.fileno(), stream)
    os.environ["COLUMNS"] = "100"
    words = shlex.split(command)
    if words[:2] != ["python", "-m"]:
        sys.exit(subprocess.run(command, shell=True, cwd=ROOT).returncode)
    os.chdir(ROOT)
    sys.argv = words[2:]
    sys.path.insert(0, str(ROOT))
    runpy.run_module(words[2], run_name="__main__", alter_sys=True)


def processes() -> multiprocessing.context.BaseContext:
    """What starts stages: a server that has imported the libraries and forks, where the system can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


# --------------------------------------------------------------------------------------------------- DVC's own part
class Pipeline:
    """The stages of dvc.yaml and what DVC knows of them. All of it happens in one process and one thread."""

    def __init__(self, targets: Sequence[str] = ()):
        from dvc.repo import Repo

        self.repo = Repo(str(ROOT))
        with self.locked():
            graph = self.repo.index.graph  # edges point at what a stage needs
            nodes = {s.addressing: s for s in graph}
            order = {name: i for i, name in enumerate(nodes)}
            matching = {t: fnmatch.filter(nodes, t) for t in targets or ("*",)}
            if unknown := [t for t, found in matching.items() if not found]:
                raise ValueError(
                    f"stage {unknown[0]!r}: expected one of dvc.yaml's, such as train@jempp-m5 "
                    "(python -m dvc stage list names them)"
                )
            needed, todo = set(), [nodes[name] for found in matching.values() for name in found]
            while todo:
                if (stage := todo.pop()) not in needed:
                    needed.add(stage)
                    todo += graph.successors(stage)
        kinds = {kind: i for i, kind in enumerate(KINDS)}
        kind_of = lambda name: kinds.get(name, kinds.get(name.split("@")[0], len(KINDS)))
        place = lambda s: (kind_of(s.addressing), order[s.addressing])
        self.waiting = {s: set(graph.successors(s)) for s in sorted(needed, key=place)}
        self.unwritten: list[PipelineStage] = []
        self.held: dict[PipelineStage, AbstractContextManager] = {}  # locks on what it reads and writes
        self.written, self.writing = time.monotonic(), 0.0
        self.interrupted = False

    def locked(self):
        """DVC's lock on the project, for as long as a `with` lasts; one in another costs nothing."""
        from dvc.repo import lock_repo

        return lock_repo(self.repo)

    def begin(self, stage) -> bool:
        """Make ready for a stage's command; False where it is up to date, or DVC's run cache has the result."""
        from dvc.rwlock import rwlock
        from dvc.stage.cache import RunCacheNotFoundError

        with self.locked():
            if not stage.changed():
                return self._release(stage)
            # for as long as the command runs; under the name that DVC's own calls below take, which they then let pass
            self.held[stage] = rwlock(
                self.repo.tmp_dir,
                self.repo.fs,
                " ".join(sys.argv),
                [d.fs_path for d in stage.deps],
                [o.fs_path for o in stage.outs],
                False,
            )
            self.held[stage].__enter__()
            stage.remove_outs(ignore_remove=False, force=False)
            with contextlib.suppress(RunCacheNotFoundError):
                self.repo.stage_cache.restore(stage)
                self._record(stage)
                return False
            stage.save_deps()
        return True

    def end(self, stage, done: bool) -> None:
        """A command has ended: hash and cache what it made, if it is `done`."""
        with self.locked():
            if done:
                self._record(stage)
            else:
                self.held.pop(stage).__exit__(None, None, None)
        if time.monotonic() - self.written > LOCK_SHARE * self.writing:
            self.write()

    def _record(self, stage) -> None:
        cached = all(o.use_cache or o.is_metric or o.is_plot for o in stage.outs)
        stage.save(run_cache=cached)
        stage.commit()
        self.unwritten.append(stage)
        self.held.pop(stage).__exit__(None, None, None)
        self._release(stage)

    def _release(self, stage) -> bool:
        """Stages that waited for this one wait no longer. Returns False, as `begin` does of a stage that need not run."""
        for needs in self.waiting.values():
            needs.discard(stage)
        return False

    def write(self) -> None:
        """What has ended, into dvc.lock."""
        began = time.monotonic()
        if self.unwritten:
            with self.locked():
                self.unwritten[0].dvcfile.dump_stages(self.unwritten, update_pipeline=False)
        self.unwritten, self.written = [], time.monotonic()
        self.writing = self.written - began

    # ---------------------------------------------------------------------------------------------- side by side
    def run(self, side_by_side: int) -> dict[str, float]:
        """Bring every stage up to date, as many side by side; returns the seconds of those that ran, by name.

        Raises: Failed where a command ends with an error: no other begins, those at work are finished and recorded.
        KeyboardInterrupt after `interrupt`: those at work are ended, and will continue from their checkpoints.
        """
        files.writable(LOGS)
        context, count, spoke = processes(), len(self.waiting), time.monotonic()
        seconds: dict[str, float] = {}
        failed: list[Job] = []
        running: dict[Any, Job] = {}  # by its process's sentinel
        try:
            while not self.interrupted:
                with self.locked():  # once for all that is up to date: taking it costs time
                    while not failed and len(running) < side_by_side and (stage := self._next()):
                        if self.begin(stage):
                            job = Job(stage, context)
                            running[job.process.sentinel] = job
                if not running:
                    break
                ended = multiprocessing.connection.wait(running, timeout=0.5)  # then look whether we are to stop
                for job in [running.pop(sentinel) for sentinel in ended if not self.interrupted]:
                    took = job.ended()
                    self.end(job.stage, took is not None)
                    if took is None:
                        failed.append(job)
                        continue
                    seconds[job.name], spoke = took, time.monotonic()
                    done = count - len(self.waiting) - len(running)
                    print(f"[{done:{len(str(count))}}/{count}] {job.name:32} {took:6.1f} s", flush=True)
                    if job.name == FIRST:
                        print("First pictures: notebooks/01_energies_in_2d.ipynb", flush=True)
                if time.monotonic() - spoke > QUIET:
                    print("\n".join(f"  at work: {job}" for job in running.values()), flush=True)
                    spoke = time.monotonic()
        finally:
            for job in running.values():
                job.process.terminate()
                job.ended()
                self.end(job.stage, False)
            self.write()
        if self.interrupted:
            raise KeyboardInterrupt
        if failed:
            raise Failed(
                "\n".join(
                    f"stage {job.name} failed; all of its output is in {job.log.relative_to(ROOT).as_posix()}, "
                    f"which ends:\n{job.tail()}"
                    for job in failed
                )
            )
        return seconds

    def interrupt(self, *_) -> None:
        """A signal's handler, which only takes note: DVC is not to be left in the middle of a file."""
        self.interrupted = True

    def _next(self):
        """The first stage that waits for no other, which it leaves to the caller; None where all wait."""
        stage = next((s for s, needs in self.waiting.items() if not needs), None)
        if stage:
            del self.waiting[stage]
        return stage


class Job:
    """A stage's command at work."""

    def __init__(self, stage, context):
        self.stage, self.name, self.began = stage, stage.addressing, time.monotonic()
        self.log = LOGS / f"{self.name.replace('@', '-')}.log"
        self.process = context.Process(target=execute, args=(stage.cmd, self.log), name=self.name)
        self.process.start()

    def ended(self) -> float | None:
        """Its seconds, once it has ended; None where that was with an error."""
        self.process.join()
        return None if self.process.exitcode else time.monotonic() - self.began

    def tail(self, lines: int = 20) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(line.rstrip() for line in text.splitlines()[-lines:])  # a progress bar's states count as lines

    def __str__(self):
        return f"{self.name}, {time.monotonic() - self.began:.0f} s; {self.tail(1)[:80]}"


def without_git() -> None:
    """An archive of the project has no .git: tell DVC, for `dvc` commands too, in a file that git would ignore."""
    local = ROOT / ".dvc" / "config.local"
    if any((folder / ".git").exists() for folder in (ROOT, *ROOT.parents)):
        return
    text = local.read_text(encoding="utf-8") if local.exists() else ""
    if "no_scm" not in text:
        files.write_text(local, text + "[core]\n    no_scm = true\n")


def summary(seconds: dict[str, float]) -> str:
    """A line per kind of stage: how many, their seconds, the longest."""
    kinds: dict[str, dict[str, float]] = {}
    for name, took in seconds.items():
        kinds.setdefault(name.split("@")[0], {})[name] = took
    lines = []
    for kind, those in kinds.items():
        longest = max(those, key=those.__getitem__)
        count = f"{kind:9} {len(those):3} stages {sum(those.values()):6.0f} s in all"
        lines.append(f"{count}, longest {those[longest]:5.0f} s ({longest})")
    return "\n".join(lines)


@files.command(Failed, ValueError)
def main() -> None:
    parser = argparse.ArgumentParser(description="Bring the pipeline of dvc.yaml up to date, stages side by side.")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="these and what they need, 'train@*' for many; none: all")
    parser.add_argument("--jobs", help="stages side by side; default: $JOBS, else one per core that may be used")
    args = parser.parse_args()
    os.chdir(ROOT)  # DVC names stages by the working folder
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # stages side by side, one core each
    os.environ["DVC_NO_ANALYTICS"] = "1"
    from dvc.exceptions import DvcException

    logging.getLogger("dvc").setLevel(logging.WARNING)
    began = time.monotonic()
    try:
        side_by_side = jobs(args.jobs)
        without_git()
        stages = Pipeline(args.stages)
        for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C, and a scheduler's end
            signal.signal(number, stages.interrupt)
        seconds = stages.run(side_by_side)
    except KeyboardInterrupt:
        sys.exit("interrupted: what was finished stays, and the same command continues")
    except DvcException as e:
        raise Failed(e) from None
    if not seconds:
        print("Nothing changed: results are up to date.")
        return
    print(f"{summary(seconds)}\n{len(seconds)} stages in {time.monotonic() - began:.0f} s, {side_by_side} side by side")


if __name__ == "__main__":
    main()
