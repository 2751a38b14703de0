"""What a notebook records: the data of what it shows, and a stand-in where it is one; where it computes."""

import math
import re
import textwrap
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbclient
import nbformat
import pandas as pd
import pytest
import torch

from lib import book, data, evaluate, params
from lib.papers import register
from lib.training import loop


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """Profile -> a Book that writes under tmp_path; its data sets are called as their roles."""
    for module in (book, register):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(book.Book, "split", lambda self, role="primary": SimpleNamespace(title=role))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    with plt.rc_context():
        yield lambda profile: book.Book("05_jempp_results", profile)


@pytest.mark.parametrize(
    "runs, expected",
    [
        (["jem", "jempp-m10"], "primary"),
        (["sada-k10", "sada-k10-third"], "primary; third"),
        (["jem-second", "jem-third", "softmax-second"], "second; third"),
        (["at", "at-faces", "at-cats"], "primary; faces; cats"),
        ([], "none: computed in the notebook"),
    ],
)
def test_the_register_names_the_data_of_every_run_shown(at_home, runs, expected):
    b = at_home("paper")
    b.figure("sada-fig2", plt.figure(), runs=runs)
    assert b.recorded["sada-fig2"]["dataset"] == expected and b.recorded["sada-fig2"]["runs"] == runs


def test_a_stand_in_is_said_in_every_profile_but_paper(at_home):
    for profile in params.PROFILES:
        b = at_home(profile)
        b.figure("jempp-fig4", plt.figure(), dataset="digits", stand_in="Digits for house numbers.")
        assert b.recorded["jempp-fig4"].get("stand_in") == (None if profile == "paper" else "Digits for house numbers.")
        assert b.recorded["jempp-fig4"]["dataset"] == "digits"


@pytest.mark.parametrize("there, device", [(True, "cuda"), (False, "cpu")])
def test_a_notebook_computes_on_the_gpu_where_there_is_one_and_where_it_asks_for_it(at_home, monkeypatch, there, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(evaluate, "load_run", lambda *given: given)
    b = at_home("smoke")
    assert b.device == device
    assert b.run("jem", device=b.device) == ("jem", "smoke", None, device) and b.run("jem", 1) == ("jem", "smoke", 1, "cpu")


def test_the_runs_of_the_third_data_set_are_those_of_the_paper_and_left_out_elsewhere():
    third = [r for r in params.runs() if params.run(r, "paper").data == "third"]
    assert {"softmax-third", "jem-third", "jempp-m5-third", "jempp-m10-third", "sada-k10-third"} <= set(third)
    assert [params.data(p, "third") is not None for p in params.PROFILES] == [False, False, False, True]
    first, other = (params.run(r, "paper").model_dump() for r in ("jem", "jem-third"))
    assert {k for k in first if first[k] != other[k]} == {"name", "data", "reference"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return book.pages(tmp_path_factory.mktemp("book"))


def test_pages_link_to_each_other(written):
    links = [a for p in written for a in re.findall(r'href="([^":#]+)', p.read_text(encoding="utf-8"))]
    assert len(written) == len(list(book.NOTEBOOKS.glob("*.ipynb"))) and len(links) > 25
    assert not [a for a in links if a.endswith(".ipynb")]


def test_a_dead_link_is_found(written, tmp_path):
    page = tmp_path / "00_map.html"
    page.write_text(
        '<h2 id="here">x</h2> <a href="#here">1</a> <a href="#gone">2</a> <a class="b" href="99_no.html">3</a> '
        '<a href="https://example.org/x">4</a>',
        encoding="utf-8",
    )
    assert book.dead_links([page]) == ["00_map.html: #gone", "00_map.html: 99_no.html"]


def test_a_damaged_result_says_what_makes_it_again(at_home, tmp_path):
    b = at_home("smoke")
    for kind, read, stage in (("details", b.metrics, "evaluate"), ("applications", b.applications, "apply")):
        with pytest.raises(data.DataError, match=f"{kind}/jem.json is missing: run `dvc repro {stage}@jem`$"):
            read("jem")
        path = tmp_path / "results" / "smoke" / kind / "jem.json"
        path.parent.mkdir()
        path.write_text('{"seeds": [{"accur', encoding="utf-8")
        with pytest.raises(data.DataError, match=f"{path} is damaged .torn.*: run `dvc repro {stage}@jem`$"):
            read("jem")


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "is damaged .EmptyDataError."),
        ("a,b\n1,2,3\n1,2,3,4\n", "is damaged .ParserError."),
        ("iteration,loss\n1,2\n", "has no column epoch, cross_entropy"),
    ],
)
def test_a_curve_that_is_none_is_named(at_home, tmp_path, monkeypatch, text, says):
    (tmp_path / "curve.csv").write_text(text, encoding="utf-8")
    monkeypatch.setattr(
        evaluate, "load_run", lambda *given: SimpleNamespace(folder=tmp_path, run=params.run("softmax", "smoke"))
    )
    with pytest.raises(data.DataError, match=f"curve.csv ({says}).*run `dvc repro train@jem`"):
        at_home("smoke").curve("jem")


def test_a_torn_record_stops_the_register_which_stays(at_home, tmp_path, monkeypatch):
    at_home("smoke").figure("jempp-fig3", plt.figure(), dataset="x")
    before = register.merge("smoke")
    path = tmp_path / "results" / "smoke" / "artefacts.json"
    whole = path.read_bytes()
    assert "files" in before["jempp-fig3"]
    (tmp_path / "results" / "smoke" / "05_jempp_results" / "recorded.json").write_text('{"jempp-fig3": {', encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["book", "register", "--profile", "smoke"])
    with pytest.raises(
        SystemExit,
        match="^error: .*recorded.json is damaged .torn.*: run its notebook again: python -m "
        "lib.book run 05_jempp_results --profile smoke$",
    ):
        book.main()
    assert path.read_bytes() == whole


def test_a_figure_and_a_table_that_cannot_be_written_leave_the_old_ones(at_home, tmp_path, monkeypatch):
    b = at_home("smoke")
    frame = pd.DataFrame({"\u03c1": [0.5]})
    b.figure("jempp-fig3", plt.figure(), dataset="x"), b.table("jempp-table2", frame, dataset="x")
    before = {p: p.read_bytes() for p in b.folder.iterdir()}
    assert before[b.folder / "jempp-table2.csv"] == "\u03c1\n0.5\n".encode()

    def full_disk(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    for call in (lambda: b.figure("jempp-fig3", plt.figure(figsize=(1, 1))), lambda: b.table("jempp-table2", 2 * frame)):
        with pytest.raises(OSError, match="jempp-(fig3.png|table2.csv) could not be written"):
            call()
    assert {p: p.read_bytes() for p in b.folder.iterdir()} == before


def test_a_notebook_is_put_back_whole_or_not_at_all(tmp_path, monkeypatch):
    """Quick writes it into notebooks/, which is the reader's own file."""
    monkeypatch.setattr(book, "ROOT", tmp_path)
    monkeypatch.setattr(book, "NOTEBOOKS", tmp_path / "notebooks")
    source = tmp_path / "notebooks" / "a.ipynb"
    source.parent.mkdir()
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1", id="a")])
    source.write_text(nbformat.writes(nb), encoding="utf-8")
    before = source.read_bytes()
    monkeypatch.setattr("papermill.execute_notebook", lambda source, out, *a, **kw: nbformat.write(nb, out))

    def kill(a, b):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as m:
        m.setattr("os.replace", kill)
        with pytest.raises(OSError, match="a.ipynb could not be written"):
            book.run_notebook("a", "quick")
    assert source.read_bytes() == before
    out = book.run_notebook("a", "quick")
    assert source.read_bytes() == out.read_bytes() and source.read_bytes().endswith(b"}\n")
    assert [p.name for p in source.parent.iterdir()] == ["a.ipynb"]
    source.write_bytes(before[:40])
    with pytest.raises(data.DataError, match="a.ipynb is damaged .torn.*: restore it with git checkout"):
        book.run_notebook("a", "quick")


def test_a_run_that_diverged_before_its_first_row_stops_no_notebook(at_home, tmp_path, monkeypatch):
    b = at_home("smoke")
    jem = params.run("jem", "smoke")
    monkeypatch.setattr(book.Book, "run", lambda self, run, seed=None: SimpleNamespace(folder=tmp_path, run=jem))
    header = ",".join(loop.columns(jem)) + "\n"
    (tmp_path / "curve.csv").write_text(header, encoding="utf-8")
    curve = b.curve("jem")
    assert len(curve) == 0 and math.isnan(b.last(curve["loss"])) and math.isnan((curve["loss"] - curve["iteration"]).mean())
    (tmp_path / "curve.csv").write_text(header + "2,0.1,0.5\n4,0.2,0.25\n", encoding="utf-8")
    assert b.last(b.curve("jem")["loss"]) == 0.25 and b.curve("jem")["iteration"].dtype.kind == "i"


@pytest.mark.parametrize(
    "end, columns",
    [
        ({"accuracy": 0.1, "buffer": {"fd_clf": 3.0}}, {"iteration", "accuracy", "fd_clf"}),
        ({"samples": {"fd_clf": 3.0}}, {"iteration", "fd_clf"}),
        ({"accuracy": 0.1}, {"iteration", "accuracy"}),
    ],
)
def test_without_snapshots_the_end_stands_alone(at_home, monkeypatch, end, columns):
    b, kept = at_home("smoke"), [{"iteration": i, "fd_clf": 1.0} for i in (3, 6)]
    for extra in ({}, {"snapshots": []}):
        monkeypatch.setattr(b, "metrics", lambda run, extra=extra: {"seeds": [{"iterations": 0, **end, **extra}]})
        assert set(b.snapshots("at")) == columns and b.snapshots("at")["iteration"].tolist() == [0]
    monkeypatch.setattr(b, "metrics", lambda run: {"seeds": [{"iterations": 6, **end, "snapshots": kept}]})
    assert b.snapshots("at").to_dict("records") == kept


def test_the_papers_notes_stand_below_what_they_are_about(tmp_path, monkeypatch):
    """Under the table or the figure, each time that its cell is run; where no paper has a note, nothing is added."""
    monkeypatch.setenv("PYTHONPATH", str(book.ROOT))  # the kernel's lib is this one
    first = f"""
        import matplotlib.pyplot as plt, pandas as pd
        from pathlib import Path
        from lib import book
        book.ROOT, frame = Path({str(tmp_path)!r}), pd.DataFrame({{"model": ["JEM"]}})
        b = book.Book("05_jempp_results", "smoke")"""
    cells = {
        'b.table("jempp-table2", frame, dataset="x").set_caption("Ours")': "jempp-table2",
        'b.table("jempp-table2", frame, dataset="x")': "jempp-table2",
        'b.figure("sada-fig4", plt.figure(figsize=(1, 1)), dataset="x")': "sada-fig4",
        'b.table("jempp-supp-fig1", frame, dataset="x")': "jempp-supp-fig1",
    }
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (textwrap.dedent(first), *cells)])
    nbclient.NotebookClient(nb, kernel_name="python3", resources={"metadata": {"path": str(book.NOTEBOOKS)}}).execute()
    for cell, id in zip(nb.cells[1:], cells.values(), strict=True):
        value, *below = cell.outputs
        assert value.output_type == "execute_result" and "text/markdown" not in value.data
        assert [o.data["text/markdown"] for o in below] == [book.notes(id)] * bool(book.notes(id))
    assert book.notes("jempp-table2") and book.notes("sada-fig4") and not book.notes("jempp-supp-fig1")


def test_letters_that_markdown_would_take_for_its_own_are_escaped():
    assert "E\\_p[.]" in book.notes("at-table1") and "pT\\* is" in book.notes("at-table1")
