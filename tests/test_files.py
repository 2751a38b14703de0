"""Files are whole or absent, in UTF-8; a damaged one is one line. Nothing in the project reads or writes otherwise."""

import ast
import os
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from lib import ROOT, data, files

CODE = [p for folder in ("lib", "data", "tests") for p in sorted((ROOT / folder).rglob("*.py"))]
COMMANDS = [p for p in CODE if "tests" not in p.parts and "\ndef main(" in p.read_text(encoding="utf-8")]


# ------------------------------------------------------------------------------------------------------------ writing
def fails(fault):
    def call(*args, **kw):
        raise fault

    return call


WRITES = {
    "text": lambda p: files.write_text(p, "new"),
    "json": lambda p: files.write_json(p, {"new": 1}),
    "tensors": lambda p: files.write_tensors(p, {"new": torch.zeros(3)}),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize(
    "where, fault",
    [("fsync", OSError(28, "No space left on device")), ("replace", OSError(13, "Denied")), ("fsync", KeyboardInterrupt())],
)
def test_the_old_file_stays_where_the_new_one_cannot_be_written(tmp_path, monkeypatch, write, where, fault):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, where, fails(fault))
    with pytest.raises((OSError, KeyboardInterrupt)) as e:
        write(path)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    if isinstance(fault, OSError):
        assert str(e.value).startswith(f"{path} could not be written ({fault.strerror}); what was there before is intact.")
        assert "\n" not in str(e.value)


def test_a_disk_that_is_full_under_torchs_hands(tmp_path):
    """torch reports a failed write as RuntimeError; /dev/full fails every one."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="a.pt could not be written .*what was there before is intact"):
        with files.whole(tmp_path / "a.pt"):
            torch.save({"w": torch.zeros(1000)}, "/dev/full")


def test_bytes_do_not_depend_on_the_platform_nor_the_place(tmp_path):
    files.write_text(tmp_path / "of" / "a.md", "ρ × –\nsecond\n")
    assert (tmp_path / "of" / "a.md").read_bytes() == "ρ × –\nsecond\n".encode()
    files.write_json(tmp_path / "a.json", {"title": "ρ", "n": [1]})
    assert (tmp_path / "a.json").read_bytes() == b'{\n "title": "\\u03c1",\n "n": [\n  1\n ]\n}\n'
    for name in ("a.pt", "another.pt"):
        files.write_tensors(tmp_path / name, {"w": torch.arange(3)})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()


def test_a_place_that_cannot_be_written_to_is_said_before_the_work(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=f"^{folder} is no folder to write to .*: make it writable") as e:
            files.writable(folder)
        assert "\n" not in str(e.value)
    files.writable(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir() and not any((tmp_path / "new" / "folder").iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="folders have no such permissions here")
def test_a_read_only_folder():
    """As root nothing is read-only: there another user tries."""
    with tempfile.TemporaryDirectory() as outer:
        Path(outer).chmod(0o755)
        folder = Path(outer) / "here"
        folder.mkdir(mode=0o555)
        code = (
            "import os, pathlib, sys; from lib import files\n"
            "if not os.geteuid(): os.setuid(65534)\n"
            "@files.command()\ndef main(): files.writable(pathlib.Path(sys.argv[1]))\nmain()"
        )
        done = run("-c", code, str(folder))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: {folder} is no folder to write to (Permission denied):".encode()), done.stderr


# ------------------------------------------------------------------------------------------------------------ reading
class Evil:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


@pytest.mark.parametrize(
    "read, content, says",
    [
        (files.read_text, None, "is missing: "),
        (files.read_text, "ρ".encode("cp1253"), "is damaged .not UTF-8.: "),
        (files.read_json, b"", "is damaged .empty.: "),
        (files.read_json, b'{"a": [1, 2', "is damaged .torn, or another kind of file: JSONDecodeError.: "),
        (files.read_json, "{'ρ': 1}".encode("utf-16"), "is damaged .not UTF-8.: "),
        (files.read_json, b"[1]", "holds no JSON object: it is of another version or another kind; "),
        (files.read_json, b'{"a": 1, "c": 2}', "lacks b: it is of another version or another kind; "),
        (files.read_tensors, None, "is missing: "),
        (files.read_tensors, b"", "is damaged .empty.: "),
        (files.read_tensors, b"no archive at all", "is damaged .torn, or another kind of file: "),
        (files.read_tensors, lambda whole: whole[: len(whole) // 2], "is damaged .torn"),
        (files.read_tensors, lambda whole: whole[:-10], "is damaged .torn"),
        (files.read_tensors, lambda whole: whole[len(whole) // 2 :], "is damaged .torn"),
        (
            files.read_tensors,
            lambda whole: whole.replace(b"\x07" * 2000, b"\x07" * 1000 + b"\x08" + b"\x07" * 999),
            "is damaged .its own checksums do not hold.: ",
        ),
        (files.read_tensors, pickle.dumps({"a": 1}, protocol=2)[:-1], "is damaged .torn, or another kind of file"),
    ],
)
def test_damage_is_one_line_with_the_name_and_the_remedy(tmp_path, read, content, says):
    path = tmp_path / "a.file"
    if callable(content):
        files.write_tensors(path, {"w": torch.full((4000,), 7, dtype=torch.uint8)})
        content = content(path.read_bytes())
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(data.DataError, match=f"^{path} {says}.*make it again$") as e:
        read(path, "make it again", **({"keys": ("a", "b")} if content == b'{"a": 1, "c": 2}' else {}))
    assert "\n" not in str(e.value) and e.value.__cause__ is None


def test_code_in_a_file_is_not_run_and_torchs_advice_not_passed_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Evil()}, tmp_path / "a.pt")
    with pytest.raises(data.DataError, match="a.pt is damaged .it asks for code, which was not run.: make it again$") as e:
        files.read_tensors(tmp_path / "a.pt", "make it again")
    assert "weights_only" not in str(e.value) and not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "fault, kind, says",
    [
        (OSError(5, "Input/output error"), OSError, "Errno 5.*a.pt"),
        (PermissionError(13, "x"), PermissionError, "a.pt"),
        (MemoryError(), MemoryError, "a.pt could not be read: out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), MemoryError, "a.pt could not be read: out of memory"),
    ],
)
def test_a_fault_of_the_machine_is_no_damage(tmp_path, monkeypatch, fault, kind, says):
    files.write_tensors(tmp_path / "a.pt", {"w": torch.zeros(3)})
    monkeypatch.setattr(torch, "load", fails(fault))
    with pytest.raises(kind, match=says) as e:
        files.read_tensors(tmp_path / "a.pt", "make it again")
    assert not isinstance(e.value, data.DataError) and "make it again" not in str(e.value)


def test_tensors_come_back(tmp_path):
    state = {"w": torch.randn(5), "rows": [{"i": 1, "x": float("nan")}], "buffer": None}
    files.write_tensors(tmp_path / "a.pt", state)
    found = files.read_tensors(tmp_path / "a.pt", "")
    assert torch.equal(found["w"], state["w"]) and found["buffer"] is None and found["rows"][0]["i"] == 1
    torch.save({"w": state["w"]}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(files.read_tensors(tmp_path / "old.pt", "")["w"], state["w"]), "legacy files are not archives"


# ------------------------------------------------------------------------------------------------ no other way in or out
ELSE = ("Image", "tarfile", "gzip", "os")  # whose `open` is another
WRITERS = (
    "write_text",
    "write_bytes",
    "save",
    "savez",
    "savez_compressed",
    "savetxt",
    "savefig",
    "copyfile",
    "copy",
    "copy2",
    "dump",
    "extract",
    "extractall",
    "urlretrieve",
)


def faults(source: str, writes: bool = True) -> list[str]:
    """Text that is read or written without an encoding; with `writes`, also files that are written past lib.files."""
    tree, safe, found = ast.parse(source), set(), []  # safe: names of what is not yet a file in its place
    for name, call in _bound(tree):
        opened = [*call.args[:1], getattr(call.func, "value", None)]  # open(part), part.open()
        into_part = _name(call) == "open" and any(getattr(a, "id", "") in safe for a in opened)
        safe |= {name} if _name(call) in ("BytesIO", "StringIO", "whole") or into_part else set()
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        name, attribute = _name(call), isinstance(call.func, ast.Attribute)
        owner = getattr(call.func.value, "id", "") if attribute else ""
        given, place = {k.arg: k.value for k in call.keywords}, 0 if attribute else 1
        mode = given.get("mode", call.args[place] if len(call.args) > place else None)
        mode = mode.value if isinstance(mode, ast.Constant) and isinstance(mode.value, str) else "r"
        opens = name == "open" and owner not in ELSE
        text = (opens and "b" not in mode) or (attribute and owner != "files" and name in ("read_text", "write_text"))
        text |= any(getattr(given.get(k), "value", False) for k in ("text", "universal_newlines"))
        if text and "encoding" not in given:
            found.append(f"line {call.lineno}: {name} without an encoding")
        writing = (opens and not set(mode).isdisjoint("wax+")) or (attribute and name in WRITERS)
        writing |= name == "to_csv" and bool(call.args)
        writing |= (name == "ZipFile" and len(call.args) > 1) or (owner, name) == ("nbformat", "write")
        into = {a.id for a in call.args if isinstance(a, ast.Name)} | {owner}
        if writes and writing and owner not in ("files", "checkpoint") and not into & safe:
            found.append(f"line {call.lineno}: {name} past lib.files: a kill or a full disk leaves a torn file")
    return found


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _bound(tree: ast.AST):
    """(name, call) of each `name = call(...)` and `with call(...) as name`, in the source's order."""
    for node in sorted((n for n in ast.walk(tree) if isinstance(n, (ast.Assign, ast.With))), key=lambda n: n.lineno):
        if isinstance(node, ast.With):
            pairs = [(i.optional_vars, i.context_expr) for i in node.items]
        else:
            several = isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs = zip(node.targets[0].elts, node.value.elts) if several else [(node.targets[0], node.value)]
        yield from ((t.id, v) for t, v in pairs if isinstance(t, ast.Name) and isinstance(v, ast.Call))


@pytest.mark.parametrize(
    "line, fault",
    [
        ("open('x')", "open without"),
        ("open('x', 'w', encoding='utf-8')", "open past lib.files"),
        ("p.open()", "open without"),
        ("p.open('w')", "open without"),
        ("open('x', mode='a')", "open without"),
        ("p.read_text()", "read_text without"),
        ("p.write_text('x', encoding='utf-8')", "write_text past"),
        ("p.write_bytes(b'')", "write_bytes past"),
        ("subprocess.run(['git'], text=True)", "run without"),
        ("torch.save(x, path)", "save past"),
        ("np.savez(path, x=x)", "savez past"),
        ("fig.savefig(path)", "savefig past"),
        ("frame.to_csv(path)", "to_csv past"),
        ("json.dump(x, f)", "dump past"),
        ("shutil.copyfile(a, b)", "copyfile past"),
        ("nbformat.write(nb, path)", "write past"),
        ("tar.extract(e, root)", "extract past"),
        ("zipfile.ZipFile(path, 'w')", "ZipFile past"),
        ("image.save(path)", "save past"),
    ],
)
def test_the_search_finds_each_way(line, fault):
    assert len(faults(line)) >= 1 and any(fault in f for f in faults(line))


@pytest.mark.parametrize(
    "line",
    [
        "open('x', 'rb')",
        "p.open('rb')",
        "files.write_text(p, 'x')",
        "p.read_text(encoding='utf-8')",
        "Image.open(p)",
        "subprocess.run(['git'], capture_output=True)",
        "subprocess.run(['git'], encoding='utf-8')",
        "frame.to_csv(index=False)",
        "out = io.BytesIO()\nfig.savefig(out)",
        "with files.whole(p) as part:\n    torch.save(x, part)",
        "zipfile.ZipFile(f)",
    ],
)
def test_the_search_finds_nothing_else(line):
    assert not faults(line)


PAST = {
    "lib/measures/inception.py": 1,  # a download, whose checksum is verified before it takes its place
    "lib/packing.py": 1,  # an archive, cut into parts and removed
    "lib/pipeline.py": 2,
}  # a stage's log, read while it grows; DVC's own stage.save


@pytest.mark.parametrize("path", CODE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_all_text_has_an_encoding_and_every_file_is_written_whole(path):
    name = path.relative_to(ROOT).as_posix()
    found = faults(path.read_text(encoding="utf-8"), writes=not name.startswith("tests/"))
    encoding = [f for f in found if "without an encoding" in f]
    assert not encoding, f"{name}: {encoding}"
    assert len(found) == PAST.get(name, 0), f"{name}: {found}"


# ----------------------------------------------------------------------------------------------------------- commands
def test_every_command_has_one_line_for_its_faults():
    assert {p.name for p in COMMANDS} >= {"train.py", "evaluate.py", "sources.py", "book.py", "fleet.py", "make_embedded.py"}
    for path in COMMANDS:
        assert re.search(r"^@files\.command\(.*\)\ndef main\(", path.read_text(encoding="utf-8"), re.M), path.name


def run(*words, **changes):
    """A process of this Python in an environment that names no language nor encoding, but for `changes`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=env | changes, capture_output=True)


@pytest.mark.parametrize(
    "changes, shown",
    [
        ({"PYTHONIOENCODING": "cp1252"}, "\\u03c1 ×".encode("cp1252")),
        ({"PYTHONIOENCODING": "utf-8"}, "ρ ×".encode()),
        ({"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, b"\\u03c1 \\xd7"),
    ],
)
def test_a_terminal_that_lacks_a_letter_ends_no_command(changes, shown):
    code = (
        "from lib import files\n@files.command(ValueError)\ndef main():\n    print('\\u03c1 \\xd7')\n"
        "    raise ValueError('K \\u2265 1')\nmain()"
    )
    done = run("-c", code, **changes)
    assert done.stdout.strip() == shown and done.returncode == 1 and done.stderr.startswith(b"error: K "), done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = run("-m", "lib.book", "coverage", **changes)
    assert done.returncode == 0 and b"16" in done.stdout, done.stderr[-1000:]


EVERYTHING = """
import pathlib, sys, warnings
warnings.filterwarnings("error", category=EncodingWarning, module=r"lib(\\.|$)")
from lib import applications, book, cards, data, evaluate, fleet, params, sources, train
import matplotlib.pyplot as plt, pandas as pd
home = pathlib.Path(sys.argv[1])
for name, module in list(sys.modules.items()):
    if name.startswith("lib") and hasattr(module, "ROOT"):
        module.ROOT = home

def call(module, *words):
    sys.argv = [module.__name__, *words, "--profile", "smoke"]
    try:
        module.main()
    except SystemExit as e:
        assert e.code in (None, 0, train.UNFINISHED), (module.__name__, words, e.code)

call(sources)
for name in ("reference", "softmax", "jempp-m5"):
    call(train, name)
    call(evaluate, name)
call(applications, "softmax", "ood")
call(cards, "softmax", "jempp-m5")
b = book.Book("05_jempp_results", "smoke")
b.figure("jempp-fig3", plt.figure(), runs=["jempp-m5"])
b.table("jempp-table2", pd.DataFrame({"\\u03c1": [1.0], "M \\xd7 N": ["\\u2013"]}), runs=["jempp-m5"])
b.curve("jempp-m5"), b.metrics("softmax"), b.applications("softmax")
call(book, "register")
call(fleet, "--runs", "softmax", "jempp-m5", "--pack", str(home / "pack"))
call(fleet, "--runs", "softmax", "jempp-m5", "--unpack", str(home / "pack"))
print("all of it")
"""


def test_every_command_reads_and_writes_utf8_in_the_poorest_locale(tmp_path):
    """Where text is ASCII by default, and every use of that default in lib is an error."""
    (tmp_path / "home").mkdir()
    for name in ("data", "dvc.yaml", "params.yaml", "lib", "notebooks"):
        (tmp_path / "home" / name).symlink_to(ROOT / name)
    done = run(
        "-X",
        "warn_default_encoding",
        "-c",
        EVERYTHING,
        str(tmp_path / "home"),
        PYTHONUTF8="0",
        LC_ALL="C",
        PYTHONCOERCECLOCALE="0",
    )
    assert done.returncode == 0 and done.stdout.endswith(b"all of it\n"), done.stderr[-3000:].decode(errors="replace")
    table = tmp_path / "home" / "results" / "smoke" / "05_jempp_results" / "jempp-table2.csv"
    assert table.read_bytes() == "ρ,M × N\n1.0,–\n".encode()
    for path in (tmp_path / "home").glob("[ars]*/**/*"):
        if path.suffix in (".json", ".md", ".csv", ".ipynb"):
            assert b"\r" not in path.read_bytes() and path.read_bytes().decode("utf-8")
        assert ".part" not in path.suffix, path
