"""Checkpoints survive torn files and full disks."""

import os

import pytest
import torch

from lib.training import checkpoint


def test_newest_two_are_kept_and_the_newest_is_loaded(tmp_path):
    for i in (1, 2, 3):
        checkpoint.save({"i": i}, tmp_path, i)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["00000002.pt", "00000003.pt"]
    assert checkpoint.latest(tmp_path) == {"i": 3}


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * len(b)])
def test_a_corrupt_checkpoint_falls_back_to_the_one_before(tmp_path, damage, capsys):
    for i in (1, 2):
        checkpoint.save({"w": torch.full((100,), float(i))}, tmp_path, i)
    path = tmp_path / "00000002.pt"
    path.write_bytes(damage(path.read_bytes()))
    assert checkpoint.latest(tmp_path)["w"][0] == 1
    assert "using the one before" in capsys.readouterr().err and path.with_suffix(".corrupt").exists()


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.latest(tmp_path / "nowhere") is None


def test_a_failed_write_leaves_the_old_checkpoints(tmp_path, monkeypatch):
    for i in (1, 2):
        checkpoint.save({"i": i}, tmp_path, i)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full_disk(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="00000003.pt could not be written .No space left on device.; what was there"):
        checkpoint.save({"i": 3}, tmp_path, 3)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "fault, says",
    [
        (MemoryError(), "out of memory"),
        (OSError(5, "Input/output error"), "Errno 5"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out of memory"),
    ],
)
def test_a_fault_of_the_machine_sets_no_checkpoint_aside(tmp_path, monkeypatch, fault, says):
    for i in (1, 2):
        checkpoint.save({"i": i}, tmp_path, i)

    def fails(*args, **kw):
        raise fault

    with monkeypatch.context() as m:
        m.setattr(torch, "load", fails)
        with pytest.raises((MemoryError, OSError), match=f"{says}.*00000002.pt|00000002.pt.*{says}"):
            checkpoint.latest(tmp_path)
    assert checkpoint.latest(tmp_path) == {"i": 2} and not list(tmp_path.glob("*.corrupt"))


def test_a_flipped_bit_is_noticed(tmp_path, capsys):
    for i in (1, 2):
        checkpoint.save({"w": torch.full((1000,), float(i))}, tmp_path, i)
    path = tmp_path / "00000002.pt"
    content = bytearray(path.read_bytes())
    content[content.find(torch.full((2,), 2.0).numpy().tobytes()) + 2000] ^= 1  # in the middle of the numbers
    path.write_bytes(content)
    assert checkpoint.latest(tmp_path)["w"].unique().tolist() == [1.0]
    assert "00000002.pt is damaged (its own checksums do not hold): using the one before" in capsys.readouterr().err


def test_what_a_killed_process_left_of_a_checkpoint_goes(tmp_path):
    (tmp_path / "00000001.part99").write_bytes(b"half")
    checkpoint.save({"i": 2}, tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["00000002.pt"] and checkpoint.latest(tmp_path) == {"i": 2}


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    torch.save(Evil(), tmp_path / "00000001.pt")
    assert checkpoint.latest(tmp_path) is None and not (tmp_path / "hacked").exists()
