"""Many files as a few: one tar, gzipped, cut into parts of a given size, beside a manifest with their checksums.

`cat NAME.tar.gz.* | tar xz` restores what `unpack` does, unchecked.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import TypedDict

from lib import files
from lib.files import DataError

END = gzip.compress(bytes(1024), mtime=0)  # a tar ends with two empty blocks
PARTS = ".tar.gz."


class Part(TypedDict):
    """One file of a pack."""

    name: str  # it lies beside the manifest
    bytes: int
    sha256: str


class Manifest(TypedDict):
    """What NAME.json holds."""

    parts: list[Part]  # in the order in which they are one archive
    files: dict[str, int]  # name -> bytes
    left_out: list[str]  # names of what did not fit


def pack(paths: Iterable[Path], root: Path, folder: Path, name: str, *, count: int = 8, megabytes: float = 16) -> Manifest:
    """Write the files at `paths`, the first ones first, so far as they fit, into folder/: at most `count` files with the
    manifest NAME.json, each of at most `megabytes` (10^6 bytes). A pack of the same name is replaced. Returns the manifest.

    Args:
        paths: of the files, under `root`.
    Raises: DataError where there is room for nothing; OSError where the folder cannot be written to.
    """
    size = int(1e6 * megabytes)
    room = (count - 1) * size - len(END)
    if room <= 0:
        raise DataError(f"{count} files of {megabytes:g} MB: expected at least 2 (one is the manifest) of more than 0 MB")
    files.writable(folder)
    whole = folder / f"{name}.part{os.getpid()}"
    try:
        held, left_out = _gather(paths, root, whole, room)
        manifest: Manifest = {"parts": _cut(whole, folder / (name + PARTS), size), "files": held, "left_out": left_out}
    except OSError as e:
        raise OSError(
            f"{folder} could not take the pack ({e}): free disk space, or name another folder; what is packed stays "
            "where it is"
        ) from e
    finally:
        whole.unlink(missing_ok=True)
    files.write_json(folder / f"{name}.json", manifest)
    return manifest


def _gather(paths: Iterable[Path], root: Path, whole: Path, room: int) -> tuple[dict[str, int], list[str]]:
    """Write one archive of at most `room` bytes; returns what it holds (name -> bytes), and what did not fit."""
    held: dict[str, int] = {}
    left_out: list[str] = []
    with whole.open("wb") as out:
        for path in paths:
            inside, n = path.relative_to(root).as_posix(), path.stat().st_size
            member = _member(path, inside) if n <= room else b""  # weights hardly shrink: no use to try
            if not member or len(member) > room:
                left_out.append(inside)
                continue
            out.write(member)
            held[inside], room = n, room - len(member)
        out.write(END)
    return held, left_out


def _member(path: Path, inside: str) -> bytes:
    """A file as a gzip member of its own, so that its packed size is known before it is added."""
    content, entry = path.read_bytes(), tarfile.TarInfo(inside)
    entry.size, entry.mtime = len(content), int(path.stat().st_mtime)
    return gzip.compress(entry.tobuf() + content + bytes(-len(content) % tarfile.BLOCKSIZE), 6, mtime=0)


def _cut(whole: Path, stem: Path, size: int) -> list[Part]:
    """The parts of a file; those of an earlier pack are removed."""
    parts: list[Part] = []
    with whole.open("rb") as f:
        while piece := f.read(size):
            path = stem.with_name(f"{stem.name}{len(parts):02d}")
            files.write_bytes(path, piece)
            parts.append({"name": path.name, "bytes": len(piece), "sha256": hashlib.sha256(piece).hexdigest()})
    for old in set(stem.parent.glob(f"{stem.name}*")) - {stem.with_name(p["name"]) for p in parts}:
        old.unlink()
    return parts


def unpack(
    manifest: Path, root: Path, *, inside: tuple[str, ...], keep: Callable[[str], bool] = lambda name: False
) -> list[str]:
    """Restore a pack's files under `root`; returns their names. Nothing is written unless all of it is in order; each file
    is whole or absent, and what marks a result as whole, its provenance.json, comes last.

    Args:
        inside: the folders of `root` that a pack may write to.   keep: of a name, whether the file there stays.
    Raises: DataError for a part that is missing or damaged, an entry outside `inside`, anything but plain files.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(_joined(manifest)), mode="r:gz") as tar:
            entries = tar.getmembers()
            for e in entries:
                _check(e, manifest, inside)
            entries = [e for e in entries if not keep(e.name)]
            for e in sorted(entries, key=lambda e: e.name.endswith("/provenance.json")):
                content = tar.extractfile(e)
                assert content is not None  # as of folders and links, which _check refused
                with files.whole(root / e.name) as part, part.open("wb") as f:
                    shutil.copyfileobj(content, f)
                os.utime(root / e.name, (e.mtime, e.mtime))
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise DataError(f"{manifest}: its parts are not a whole archive ({e}): pack again") from e
    return [e.name for e in entries]


def _joined(manifest: Path) -> bytes:
    """The parts in one, each held to its checksum."""
    try:
        parts = [(p["name"], p["sha256"]) for p in json.loads(manifest.read_text(encoding="utf-8"))["parts"]]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{manifest} is not the manifest of a pack ({type(e).__name__}: {e}): copy it again") from e
    pieces = []
    for name, digest in parts:
        path = manifest.parent / Path(name).name  # a part lies beside its manifest
        if not path.exists():
            raise DataError(f"{path} is missing: expected {len(parts)} parts beside {manifest.name}; copy them again")
        pieces.append(path.read_bytes())
        found = hashlib.sha256(pieces[-1]).hexdigest()
        if found != digest:
            raise DataError(f"{path} is damaged: sha256 {found[:12]}..., expected {digest[:12]}...; copy it again")
    return b"".join(pieces)


def _check(entry: tarfile.TarInfo, manifest: Path, inside: tuple[str, ...]) -> None:
    path = PurePosixPath(entry.name)
    if not (entry.isfile() and len(path.parts) > 1 and path.parts[0] in inside and ".." not in path.parts):
        raise DataError(
            f"{manifest} holds {entry.name!r}: expected only plain files in {', '.join(f'{i}/' for i in inside)}; "
            "nothing was restored: use packs from a source that you trust"
        )
