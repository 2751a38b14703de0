"""Train and measure what is pending, the most important first, within a number of minutes:

    python -m lib.fleet --profile gpu                               what is pending
    python -m lib.fleet --profile gpu --minutes 25 --pack packed    25 minutes of it, then a few files to take away
    python -m lib.fleet --profile gpu --unpack packed --minutes 25 --pack packed    on the next machine, from there

For GPUs that are rented or taken away. A job is one seed of one run; the same command continues an interrupted one
to the same bits. Exit status 75 (as lib.train) where something is left to train, 1 where a job failed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from lib import ROOT, cards, data, files, packing, params, sources, train

MEASURING = 0.15  # of the time, kept for measuring what was trained
TEXT = ("metrics.json", "curve.csv", "provenance.json")
FOLDERS = ("artifacts", "results", "scratch")
STAGES = {"metrics": "evaluate", "applications": "apply"}  # dvc.yaml's, by what they write


@dataclass(frozen=True)
class Job:
    """One seed of one run. `run` is configured for this seed only."""

    run: params.Run
    seed: int

    def __str__(self):
        return f"{self.run.name} seed {self.seed}"

    @property
    def folder(self) -> Path:
        return ROOT / "artifacts" / self.run.profile / self.run.name / f"seed{self.seed}"

    @property
    def scratch(self) -> Path:
        """Separate from lib.train's own, which a finished run clears for all seeds. The two know nothing of each other:
        train a run by one of them at a time."""
        return ROOT / "scratch" / "fleet" / f"seed{self.seed}"

    @property
    def checkpoint(self) -> Path | None:
        """The newest one that this configuration, on these data, can continue from."""
        begun = list((self.scratch / self.run.profile / self.run.name).glob("*/*/*.pt"))
        digest = train.fingerprint(self.run) if begun else None  # which reads the data
        return max((p for p in begun if p.parent.parent.name == digest), default=None)

    @property
    def finished(self) -> bool:
        """Trained as params.yaml says today, and the weights are here, or were not needed any more when it was packed.
        With a damaged file it is not: a line says so."""
        about, weights, now = self.folder / "provenance.json", self.folder / "weights.pt", self.run.model_dump(mode="json")
        if not about.exists():
            return False
        try:
            config = files.read_json(about, f"{self} counts as unfinished", ("config",))["config"]
        except data.DataError as e:
            _say(str(e))
            return False
        if _but_seeds(config) != _but_seeds(now):
            return False
        if not weights.exists():
            return _newer(result("metrics", self.run.profile, self.run.name), [about])
        if not zipfile.is_zipfile(weights):  # its end is there, where an archive has its list
            _say(f"{weights} is damaged (torn): {self} counts as unfinished")
            return False
        return True


def _but_seeds(config) -> dict:
    """What decides the result of one seed: which others there are does not."""
    return {k: v for k, v in config.items() if k != "seeds"} if isinstance(config, dict) else {}


@cache
def _say(line: str) -> None:
    """Once: jobs are looked at again and again."""
    print(line, file=sys.stderr)


def result(kind: str, profile: str, name: str) -> Path:
    """Where lib.evaluate ('metrics') and lib.applications ('applications') write."""
    return ROOT / "results" / profile / kind / f"{name}.json"


def _newer(path: Path, than: Iterable[Path]) -> bool:
    """Whole seconds: a pack keeps no more of a file's time."""
    return path.exists() and all(int(path.stat().st_mtime) >= int(t.stat().st_mtime) for t in than)


def jobs(profile: str, names: Iterable[str] = ()) -> list[Job]:
    """The jobs of a profile (of the runs in `names`, where given) for which it has data, the most important first:
    reference classifiers, the main runs' first seeds, their other seeds, all else. Raises: ConfigError."""
    configs = {n: params.run(n, profile) for n in params.runs()}
    wanted = {n: params.run(n, profile) for n in names} or configs
    references, main = {r.reference for r in configs.values()}, params.main_runs()
    order = [*main, *(n for n in configs if n not in main)]

    def place(job: Job):
        name, nth = job.run.name, configs[job.run.name].seeds.index(job.seed)
        kind = 0 if name in references else (1 if nth == 0 else 2) if name in main else 3
        return kind, nth, order.index(name)

    return sorted((j for r in wanted.values() if params.data(profile, r.data) for j in seeds_of(r)), key=place)


def seeds_of(run: params.Run) -> list[Job]:
    return [Job(run.model_copy(update={"seeds": (s,)}), s) for s in run.seeds]


def prepare(profile: str) -> None:
    """The data that are not yet there, or damaged, a line each. A set that cannot be had stops only the jobs that
    need it."""
    for role in params.scale(profile)["data"]:
        if _prepared(profile, role):
            continue
        try:
            if line := sources.stage(profile, role):
                print(line, flush=True)
        except data.DataError as e:
            print(f"{role}: {e}", flush=True)


def _prepared(profile: str, role: str) -> bool:
    """Its data are here, whole, and as params.yaml has them."""
    if not data.path_of(profile, role).exists():
        return False
    try:
        data.load(profile, role)
    except data.DataError as e:
        print(f"prepared again: {e}", flush=True)
        return False
    return True


def work(todo: list[Job], deadline: float) -> set[Job]:
    """Train jobs one after the other, a line each, until the deadline; returns those that failed."""
    failed = set()
    for job in todo:
        if time.monotonic() >= deadline:
            break
        began = time.monotonic()
        if not job.checkpoint:
            shutil.rmtree(job.folder, ignore_errors=True)  # another configuration's: its snapshots would stay
        try:
            [m] = train.train(job.run, scratch=job.scratch, deadline=deadline)
            line = f"{m['verdict']}, {m['iterations']} iterations, held-out accuracy {m['holdout_accuracy']}"
        except train.OutOfTime as e:
            line = str(e).removeprefix(f"{job.run.name}: ")
        except (params.ConfigError, OSError, MemoryError, RuntimeError) as e:
            line = f"failed: {' '.join(str(e).split())}"
            failed.add(job)
        torch.cuda.empty_cache()  # measuring is another process's work, on the same GPU
        print(f"{job}: {line} ({time.monotonic() - began:.0f} s)", flush=True)
    return failed


def ready(own: list[Job]) -> bool:
    """All seeds of a run are trained, and their weights are here."""
    return all(j.finished and (j.folder / "weights.pt").exists() for j in own)


def commands(own: list[Job]) -> dict[str, list[str]]:
    """What can be measured of a run: kind -> command."""
    run, measures = own[0].run, cards.stages()["apply"]["foreach"]
    found = {}
    if ready(own) and ready(seeds_of(params.run(run.reference, run.profile))):
        found["metrics"] = ["lib.evaluate", run.name, "--profile", run.profile]
    if ready(own) and run.name in measures:
        found["applications"] = ["lib.applications", run.name, *measures[run.name].split(), "--profile", run.profile]
    return found


def measurements(every: list[Job]) -> list[tuple[str, Path, list[str]]]:
    """What is to be measured: (run, result file, command), all metrics first, the most important runs first."""
    found = []
    for name, own in _by_run(every).items():
        for kind, command in commands(own).items():
            path = result(kind, own[0].run.profile, name)
            if not _newer(path, [j.folder / "provenance.json" for j in own]):
                found.append((name, path, command))
    return sorted(found, key=lambda f: f[1].parent.name != "metrics")  # which keeps the order within a kind


def measure(every: list[Job], deadline: float) -> None:
    """Measure so far as time allows, each in a process of its own, which ends with the time."""
    for name, path, command in measurements(every):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        began = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=left,
            )
            line = "measured" if done.returncode == 0 else f"failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
        except subprocess.TimeoutExpired:
            line = "out of time; nothing written"
        print(f"{name} {path.parent.name}: {line} ({time.monotonic() - began:.0f} s)", flush=True)


def commit_to_dvc(profile: str, every: list[Job]) -> None:
    """Tell DVC that what is here is its stages' result: otherwise `dvc repro` would remove it and train again.
    Raises: DataError; ConfigError where params.yaml has another profile, which is the one that DVC would write down."""
    if (now := params.load()["profile"]) != profile:
        raise params.ConfigError(f"--commit: params.yaml has profile {now}, these are of {profile}: set it there first")
    waiting, stages = {path for _, path, _ in measurements(every)}, ["data"]
    for name, own in _by_run(every).items():
        stages += [f"train@{name}"] * ready(own)
        stages += [f"{STAGES[kind]}@{name}" for kind in commands(own) if result(kind, profile, name) not in waiting]
    if subprocess.run([sys.executable, "-m", "dvc", "commit", "-f", "-q", *stages], cwd=ROOT).returncode:
        raise data.DataError("dvc commit failed, for the reason above: dvc.lock may lack some of what is finished")
    print(f"{len(stages)} stages committed to dvc.lock")


def to_pack(profile: str, every: list[Job]) -> list[Path]:
    """What goes into a pack, the most important first: numbers and figures, weights and buffers of finished jobs,
    what unfinished ones continue from, prepared data (a checkpoint is bound to theirs), snapshots, executed notebooks."""
    shown = sorted(f for f in (ROOT / "results" / profile).rglob("*") if f.is_file() and ".part" not in f.suffix)
    done, begun = [j for j in every if j.finished], [(j, c) for j in every if not j.finished and (c := j.checkpoint)]
    books = [f for f in shown if f.suffix == ".ipynb"]
    wanted = [f for f in shown if f not in books] + [j.folder / t for j in done for t in TEXT]
    wanted += [j.folder / f for j in done for f in ("weights.pt", "buffer.pt")]
    for j, checkpoint in begun:
        wanted += [checkpoint, *_snapshots(j)]
    wanted += [data.path_of(profile, role) for role in params.scale(profile)["data"]]
    wanted += [f for j in done for f in _snapshots(j)] + books
    return [f for f in wanted if f.exists()]


def _snapshots(job: Job) -> list[Path]:
    return sorted(job.folder.glob("snapshots/*/*.pt"))


def restore(source: Path, profile: str) -> str:
    """Unpack `source`, a manifest or the folder that has it. A job that is finished here stays as it is."""
    manifest = source / f"fleet-{profile}.json" if source.is_dir() else source
    if not manifest.exists():
        have = ", ".join(sorted(p.name for p in manifest.parent.glob("fleet-*.json"))) or "none"
        raise data.DataError(f"{manifest} is missing: expected a pack of profile {profile}; packs there: {have}")
    mine = tuple(j.folder.relative_to(ROOT).as_posix() + "/" for j in jobs(profile) if j.finished)
    names = packing.unpack(manifest, ROOT, inside=FOLDERS, keep=lambda name: name.startswith(mine))
    return f"unpacked {len(names)} files of {manifest}"


def table(every: list[Job]) -> str:
    """A line per run: how many of its seeds are trained, and what was measured."""
    rows: list[tuple[str, ...]] = [("run", "trained", "metrics", "applications")]
    waiting = {path for _, path, _ in measurements(every)}
    for name, own in _by_run(every).items():
        paths = [result(kind, own[0].run.profile, name) for kind in rows[0][2:]]
        rows.append(
            (
                name,
                f"{sum(j.finished for j in own)} of {len(own)}",
                *("yes" if p.exists() and p not in waiting else "-" for p in paths),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _by_run(every: list[Job]) -> dict[str, list[Job]]:
    """In order of importance."""
    found: dict[str, list[Job]] = {}
    for job in every:
        found.setdefault(job.run.name, []).append(job)
    return found


@files.command(params.ConfigError)
def main() -> None:
    parser = argparse.ArgumentParser(description="Train and measure what is pending, within a number of minutes.")
    parser.add_argument("--profile", choices=params.PROFILES)
    parser.add_argument(
        "--minutes", type=files.amount, default=0.0, help="for all of it except packing; 0: say what is pending"
    )
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN", help="only these")
    parser.add_argument("--unpack", type=Path, metavar="FOLDER", help="a pack's folder, or its manifest: continue from it")
    parser.add_argument(
        "--commit", action="store_true", help="tell DVC of what is finished, so that it is not trained again"
    )
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="at the end, write what came out as a few files")
    parser.add_argument("--files", type=int, default=8, help="of a pack, at most")
    parser.add_argument("--megabytes", type=files.amount, default=16, help="of each of them, at most (10^6 bytes)")
    sys.exit(_main(parser.parse_args()))


def _main(args) -> int:
    began, seconds = time.monotonic(), 60 * args.minutes
    end_of_training = began + (1 - MEASURING) * seconds
    profile = params.profile(args.profile)
    every = jobs(profile, args.runs)
    if args.minutes or args.unpack:
        files.writable(*(ROOT / folder for folder in FOLDERS))
    if args.pack:
        files.writable(args.pack)
    if args.unpack:
        print(restore(args.unpack, profile))
    todo, failed = [j for j in every if not j.finished], set()
    if todo and time.monotonic() < end_of_training:
        prepare(profile)
        failed = work(todo, end_of_training)
    measure(every, began + seconds)
    print(table(every))
    if args.commit:
        commit_to_dvc(profile, every)
    if args.pack:
        m = packing.pack(
            to_pack(profile, every), ROOT, args.pack, f"fleet-{profile}", count=args.files, megabytes=args.megabytes
        )
        print(f"packed {len(m['files'])} files as {len(m['parts']) + 1} in {args.pack}; {len(m['left_out'])} did not fit")
    left = [j for j in every if not j.finished]
    trained = len(todo) - len(left)
    print(
        f"{trained or 'nothing'} trained in {args.minutes:g} minutes; "
        + (f"{len(left)} of {len(every)} pending, next {left[0]}" if left else f"nothing of {len(every)} pending")
    )
    return 1 if failed else train.UNFINISHED if left else 0


if __name__ == "__main__":
    main()
