"""What a notebook records: the data of what it shows, and a stand-in where it is one; where it computes."""
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch

from lib import book, evaluate, params


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """Profile -> a Book that writes under tmp_path; its data sets are called as their roles."""
    monkeypatch.setattr(book, "ROOT", tmp_path)
    monkeypatch.setattr(book.Book, "split", lambda self, role="primary": SimpleNamespace(title=role))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    with plt.rc_context():
        yield lambda profile: book.Book("05_jempp_results", profile)


@pytest.mark.parametrize("runs, expected", [(["jem", "jempp-m10"], "primary"), (["sada-k10", "sada-k10-third"], "primary; third"),
                                            (["jem-second", "jem-third", "softmax-second"], "second; third"),
                                            (["at", "at-faces", "at-cats"], "primary; faces; cats"),
                                            ([], "none: computed in the notebook")])
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
    page.write_text('<h2 id="here">x</h2> <a href="#here">1</a> <a href="#gone">2</a> <a class="b" href="99_no.html">3</a> '
                    '<a href="https://example.org/x">4</a>', encoding="utf-8")
    assert book.dead_links([page]) == ["00_map.html: #gone", "00_map.html: 99_no.html"]
