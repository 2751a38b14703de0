"""Files that are whole or absent, in UTF-8 with \\n; and one line, with its name and the remedy, for one that is damaged.

A file is written beside its place, forced to disk, then renamed. Reading distinguishes damage, which the remedy cures,
from a fault of the machine (no memory, no permission, a failing disk), which says nothing about the file.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import math
import os
import pickle
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class DataError(RuntimeError):
    """A data file that is missing or not what it should be: names it, and what to do."""


# ------------------------------------------------------------------------------------------------------------ writing
def writable(*folders: Path) -> None:
    """Make these folders, and see that files can be written there: to be called before long work.
    Raises: OSError, one line."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as e:
            raise OSError(
                f"{folder} is no folder to write to ({_reason(e)}): make it writable, or work in a copy of the "
                "project that is"
            ) from None


@contextlib.contextmanager
def whole(path: Path):
    """Where to write the content of `path`: a file beside it, which takes its place when all went well.

    Its name differs between processes, and up to the last point is the same: torch names what is inside after it.
    Raises: OSError, one line, with what was there before untouched.
    """
    part = path.with_name(f"{path.stem}.part{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as f:
            os.fsync(f.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as e:  # torch reports a failed write as RuntimeError
        raise OSError(
            f"{path} could not be written ({_reason(e)}); what was there before is intact. Free disk space, or "
            "make the place writable, and run the same command again: it continues where it can"
        ) from e
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    with whole(path) as part:
        part.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_figure(path: Path, figure) -> None:
    """A matplotlib figure as PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", bbox_inches="tight", pil_kwargs={"optimize": True})
    write_bytes(path, out.getvalue())


def write_tensors(path: Path, state) -> None:
    """torch.save; the same tensors give the same bytes, whatever the file's name."""
    import torch

    with whole(path) as part, part.open("wb") as f:
        torch.save(state, f)


# ------------------------------------------------------------------------------------------------------------ reading
def read_text(path: Path, remedy: str) -> str:
    with _reading(path, remedy):
        return path.read_text(encoding="utf-8")


def read_yaml(path: Path, remedy: str) -> Any:
    """What a YAML file holds. Raises: DataError, one line, also for a key that is twice in one section."""
    import yaml  # not at the top: lib.environment sets up an environment that does not have it yet

    try:
        return yaml.load(read_text(path, remedy), _loader())
    except yaml.YAMLError as e:
        raise DataError(f"{path} is not YAML ({' '.join(str(e).split())}): {remedy}") from None


@functools.cache
def _loader() -> type:
    """PyYAML's safe loader, which would take the last of two equal keys, silently: this one does not."""
    import yaml

    class Once(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            seen: set[str] = set()
            for key, _ in node.value:
                if key.value == "<<" or not isinstance(key.value, str):
                    continue
                if key.value in seen:
                    what = f'duplicate key "{key.value}": {key.value!r} is twice in one section; expected it once'
                    raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
                seen.add(key.value)
            return node

    return Once


def read_json(path: Path, remedy: str, keys: Iterable[str] = ()) -> dict:
    """A JSON object that has `keys`. Raises: DataError, which ends with the remedy ('run `dvc repro data`')."""
    with _reading(path, remedy):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict) or (lacking := [k for k in keys if k not in value]):
        what = f"lacks {', '.join(lacking)}" if isinstance(value, dict) else "holds no JSON object"
        raise DataError(f"{path} {what}: it is of another version or another kind; {remedy}")
    return value


def read_tensors(path: Path, remedy: str, device="cpu"):
    """What torch.save wrote, only tensors in plain containers: a file may ask for code, and none is run.

    The checksums that the archive holds are tested: torch itself does not look at them.
    Raises: DataError where the file is missing or damaged; MemoryError, OSError where the machine fails.
    """
    import torch

    with _reading(path, remedy):
        with path.open("rb") as f:  # legacy files of torch are not archives
            if zipfile.is_zipfile(f) and zipfile.ZipFile(f).testzip():
                raise DataError(f"{path} is damaged (its own checksums do not hold): {remedy}")
        return torch.load(path, map_location=device, weights_only=True)


@contextlib.contextmanager
def _reading(path: Path, remedy: str):
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {remedy}") from None
    except OSError as e:
        if e.errno in (None, errno.EINVAL):  # a torn archive sends its reader to before the file's beginning
            raise DataError(f"{path} is damaged (torn): {remedy}") from None
        raise OSError(e.errno, os.strerror(e.errno), str(path)) from None
    except Exception as e:  # zip, pickle, JSON and EOF errors: torch raises many kinds
        if isinstance(e, MemoryError) or "out of memory" in str(e) or "allocate memory" in str(e):
            raise MemoryError(f"{path} could not be read: out of memory; the file is left as it is") from e
        raise DataError(f"{path} is damaged ({_damage(path, e)}): {remedy}") from None


def _damage(path: Path, e: Exception) -> str:
    if not path.stat().st_size:
        return "empty"
    if isinstance(e, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(e, pickle.UnpicklingError) and zipfile.is_zipfile(path):
        return "it asks for code, which was not run"
    return f"torn, or another kind of file: {type(e).__name__}"


def _reason(e: Exception) -> str:
    return getattr(e, "strerror", None) or " ".join(str(e).split())


# ----------------------------------------------------------------------------------------------------------- commands
def amount(text: str) -> float:
    """A command line's number of minutes, or of whatever there cannot be less than none. Raises: ValueError."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError
    return value


def command(*faults: type[Exception]):
    """Decorates a command's `main`: what goes wrong with files, and `faults`, ends in one line; a letter that the terminal
    cannot show (a rho under cp1252) is escaped, not fatal."""

    ends: tuple[type[Exception], ...] = (DataError, OSError, MemoryError, *faults)

    def around(main):
        @functools.wraps(main)
        def call():
            for stream in (sys.stdout, sys.stderr):
                if hasattr(stream, "reconfigure") and "utf" not in stream.encoding.lower():
                    stream.reconfigure(errors="backslashreplace")
            try:
                return main()
            except ends as e:
                sys.exit(f"error: {str(e) or 'out of memory'}")

        return call

    return around
