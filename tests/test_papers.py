"""The register is complete, well formed, and says what the papers print."""

import json
import re
import tomllib
from collections import Counter

import pytest

from lib import ROOT, book, data, papers, params
from lib.papers import ARTEFACTS, PAPERS, PUBLISHED, published

IDS = {
    "JEM++": [
        "jempp-table1",
        "jempp-fig1",
        "jempp-fig2",
        "jempp-table2",
        "jempp-table3",
        "jempp-fig3",
        "jempp-fig4",
        "jempp-fig5",
        "jempp-table4",
        "jempp-table5",
        "jempp-fig6",
        "jempp-supp-table1",
        "jempp-supp-fig1",
        "jempp-supp-fig2",
        "jempp-supp-fig3",
        "jempp-supp-fig4",
        "jempp-supp-fig5",
        "jempp-supp-table2",
        "jempp-supp-table3",
        "jempp-supp-fig6",
        "jempp-supp-fig7-16",
    ],
    "SADA-JEM": [
        "sada-fig1",
        "sada-fig7",
        "sada-table1",
        "sada-table2",
        "sada-fig2",
        "sada-fig3",
        "sada-fig4",
        "sada-table3",
        "sada-table4",
        "sada-table8",
        "sada-fig5",
        "sada-table5",
        "sada-table6",
        "sada-table7",
        "sada-fig6",
        "sada-fig8-17",
    ],
    "AT-EBM": [
        "at-fig1",
        "at-table1",
        "at-fig2",
        "at-fig3",
        "at-fig4",
        "at-fig5",
        "at-sec5.3",
        "at-table2",
        "at-table3",
        "at-fig6",
        "at-fig7",
        "at-table4",
        "at-supp-denoise",
        "at-supp-inpaint",
        "at-supp-compose",
        "at-supp-interpolate",
        "at-supp-neighbours",
        "at-supp-efficiency",
    ],
}
WITH_NUMBERS = [
    "jempp-table1",
    "jempp-table2",
    "jempp-table3",
    "jempp-table4",
    "jempp-table5",
    "jempp-supp-table1",
    "jempp-supp-table2",
    "jempp-supp-fig4",
    "jempp-supp-fig5",
    "sada-table1",
    "sada-table2",
    "sada-table3",
    "sada-table5",
    "sada-table6",
    "sada-table7",
    "sada-fig4",
    "at-table1",
    "at-table2",
    "at-table3",
    "at-table4",
]
HISTOGRAMS = {"jempp-supp-table3", "sada-table4", "sada-table8"}  # tables of pictures


def cell(id, row, column):
    """The cell in the row whose first cells are `row` (a name, or a tuple of names)."""
    table, key = published(id), row if isinstance(row, tuple) else (row,)
    (match,) = [r for r in table.rows if r[: len(key)] == key]
    return match[table.columns.index(column)]


def test_every_id_of_the_three_papers_is_registered():
    assert sum(map(len, IDS.values())) == 55
    for paper, ids in IDS.items():
        assert {a.id for a in ARTEFACTS.values() if a.paper == paper} == set(ids)
    assert all(a.id == id for id, a in ARTEFACTS.items())
    assert set(PAPERS) == {id.split("-")[0] for id in ARTEFACTS}


def test_every_artefact_is_well_formed():
    notebooks = {f"{n:02d}" for n in range(2, 14)}
    for a in ARTEFACTS.values():
        assert a.notebook in notebooks, a
        assert a.title[:1].isupper() and not a.title.endswith("."), a
        assert re.match(r"\d|supplement \d|appendix [A-E]", a.section), a
        assert set(a.data) <= set(params.scale("paper")["data"]), a
        is_table = ("table" in a.id and a.id not in HISTOGRAMS) or a.id == "at-supp-efficiency"
        assert a.kind == ("table" if is_table else "figure"), a
    assert {a.notebook for a in ARTEFACTS.values()} == notebooks


def test_no_artefact_title_is_used_twice_in_one_paper_and_notebook():
    keys = [(a.paper, a.notebook, a.title) for a in ARTEFACTS.values()]
    assert len(keys) == len(set(keys))


def test_the_tables_with_numbers_are_all_there_and_belong_to_an_artefact():
    assert set(PUBLISHED) == set(WITH_NUMBERS)
    assert set(PUBLISHED) <= set(ARTEFACTS)
    for id, p in PUBLISHED.items():
        assert p.source.startswith(ARTEFACTS[id].paper), p.source


@pytest.mark.parametrize("id", WITH_NUMBERS)
def test_rows_fit_their_columns_and_numbers_their_units(id):
    p = published(id)
    assert len(set(p.columns)) == len(p.columns)
    keys = [tuple(c for c in row if isinstance(c, str) or type(c) is int) for row in p.rows]
    assert len(set(keys)) == len(keys), "two rows with the same names"
    for row in p.rows:
        assert len(row) == len(p.columns), row
        assert isinstance(row[0], str) and row[0], row
        for column, value in zip(p.columns, row):
            if value is None or isinstance(value, (str, bool)):
                continue
            if "acc %" in column.lower() or "ECE %" in column or id == "at-table4":
                assert 0 <= value <= 100, (row, column)
            elif id in ("jempp-supp-table2", "sada-table3"):
                assert 0 <= value <= 1, (row, column)
            elif column in ("IS", "FID", "Minutes per epoch", "Speed-up", "Speed-up per epoch"):
                assert 0 < value < 100, (row, column)


SPOT = [  # read off the papers by eye
    ("jempp-table1", "JEM++ (ours)", "Fast", "improved"),
    ("jempp-table1", "Score Matching", "Stable", False),
    ("jempp-table2", "JEM++ (M=10)", "FID", 37.1),
    ("jempp-table2", "JEM++ (M=20)", "Acc %", 94.1),
    ("jempp-table2", "WRN w/ BN", "IS", None),
    ("jempp-table3", "JEM++ (M=10)", "SVHN acc %", 96.9),
    ("jempp-table4", ("JEM++", 10, 5), "Minutes per epoch", 20.1),
    ("jempp-table5", "w/ Adam", "FID", 42.7),
    ("jempp-supp-table1", "PYLD step-size α", "Value", 0.2),
    ("jempp-supp-fig4", "JEM++", "ECE %", 2.35),
    ("jempp-supp-fig5", "JEM", "ECE %", 4.87),
    ("jempp-supp-table2", ("JEM++ (M=5)", "log p(x)"), "SVHN", 0.89),
    ("sada-table1", "SADA-JEM (K=5)", "FID", 9.41),
    ("sada-table2", "SADA-JEM (K=20)", "Acc %", 77.3),
    ("sada-table3", ("SADA-JEM (K=20)", "log p(x)"), "SVHN", 0.98),
    ("sada-table5", "JEM++ w/o DA", "FID", 12.9),
    ("sada-table6", "SAM (ρ=0.8)", "Acc %", 91.9),
    ("sada-table7", "SAM noise radius ρ", "Value", 0.2),
    ("sada-fig4", "SADA-JEM (K=10)", "ECE %", 2.04),
    ("at-table2", "Ours", "IS", 9.10),
    ("at-table2", "Ours", "FID", 13.21),
    ("at-table3", ("Ours (64 × 64)", "LSUN Church"), "FID", 10.84),
    ("at-table3", ("Ours", "CelebA-HQ 256"), "FID", None),
    ("at-table4", ("SVHN", "worst case"), "Ours", 81.6),
    ("at-table4", ("Uniform Noise", "standard"), "JEM", 11.8),
]


@pytest.mark.parametrize("id, row, column, value", SPOT)
def test_numbers_read_off_the_papers(id, row, column, value):
    assert cell(id, row, column) == value


def test_jempp_speedups_follow_from_its_minutes():
    jem = cell("jempp-table4", "JEM", "Minutes per epoch")
    for *_, minutes, speedup in published("jempp-table4").rows:
        assert jem / minutes == pytest.approx(speedup, abs=0.01)


def test_papers_agree_within_themselves_on_the_same_model():
    for ours, full in [("JEM++", "JEM++ (M=10)"), ("SADA-JEM", "SADA-JEM (K=10)")]:
        for column in ("Acc %", "FID"):
            assert cell("sada-table5", ours, column) == cell("sada-table1", full, column)
    for column in ("Acc %", "IS", "FID"):
        assert cell("jempp-table5", "JEM++", column) == cell("jempp-table2", "JEM++ (M=10)", column)
    for column in ("Acc %", "FID"):
        assert cell("sada-table6", "SAM (ρ=0.2)", column) == cell("sada-table5", "SADA-JEM", column)


OOD_SETS = ["SVHN", "CIFAR10 Interp", "CIFAR100", "CelebA"]
SAME = [  # two tables on the same data, (row here, row there), (column here, column there)
    (
        "jempp-table2",
        "sada-table1",
        [("IGEBM", "IGEBM (K=60)"), ("VERA (α=100)", "VERA"), ("WRN w/ BN", "Softmax"), ("SNGAN", "SNGAN")]
        + [(m, m) for m in ("JEM (K=20)", "JEM++ (M=5)", "JEM++ (M=10)", "JEM++ (M=20)")],
        [("Acc %", "Acc %"), ("IS", "IS"), ("FID", "FID")],
    ),
    (
        "jempp-table3",
        "sada-table2",
        [("Softmax (w/ BN)", "Softmax"), ("VERA", "VERA (α=100)")]
        + [(m, m) for m in ("JEM (K=20)", "JEM++ (M=5)", "JEM++ (M=10)")],
        [("CIFAR-100 acc %", "Acc %")],
    ),
    (
        "jempp-supp-table2",
        "sada-table3",
        [((m, s), (m, s)) for m in ("IGEBM", "JEM (K=20)", "JEM++ (M=20)") for s in ("log p(x)", "max p(y|x)")]
        + [(("WideResNet", "max p(y|x)"),) * 2],
        [(c, c) for c in OOD_SETS],
    ),
    (
        "jempp-table2",
        "at-table2",
        [("JEM (K=20)", "JEM"), ("VERA (α=1)", "VERA"), ("IGEBM", "IGEBM (Ensemble)"), ("SNGAN", "SNGAN"), ("NCSN", "NCSN")],
        [("IS", "IS"), ("FID", "FID")],
    ),
    (
        "sada-table1",
        "at-table2",
        [
            ("JEM (K=20)", "JEM"),
            ("VERA", "VERA"),
            ("IGEBM (K=60)", "IGEBM (Ensemble)"),
            ("SNGAN", "SNGAN"),
            ("CF-EBM (K=50)", "CF-EBM"),
            ("ImCD (K=40)", "ImprovedCD"),
            ("DiffuRecov (K=30)", "Diffusion Recovery"),
            ("VAEBM (K=6)", "VAEBM"),
        ],
        [("IS", "IS"), ("FID", "FID")],
    ),
    ("jempp-supp-fig4", "sada-fig4", [("JEM", "JEM (K=20)")], [("ECE %", "ECE %")]),
]
DIFFER = {  # (table, table, row in the first, column in the first): (first's number, second's number)
    ("jempp-table2", "sada-table1", "WRN w/ BN", "Acc %"): (95.8, 96.2),
    ("jempp-table2", "sada-table1", "SNGAN", "FID"): (25.5, 21.7),
    ("jempp-table3", "sada-table2", "Softmax (w/ BN)", "CIFAR-100 acc %"): (78.9, 81.3),
    ("jempp-table3", "sada-table2", "JEM++ (M=5)", "CIFAR-100 acc %"): (72.0, 72.1),
    ("jempp-table3", "sada-table2", "JEM++ (M=10)", "CIFAR-100 acc %"): (74.5, 74.2),
    ("jempp-supp-table2", "sada-table3", ("JEM++ (M=20)", "log p(x)"), "CelebA"): (0.89, 0.80),
    ("jempp-table2", "at-table2", "IGEBM", "IS"): (8.30, 6.78),
    ("jempp-table2", "at-table2", "IGEBM", "FID"): (37.9, 38.2),
    ("jempp-table2", "at-table2", "SNGAN", "IS"): (8.59, 8.22),
    ("jempp-table2", "at-table2", "SNGAN", "FID"): (25.5, 21.7),
    ("jempp-table2", "at-table2", "NCSN", "IS"): (8.91, 8.87),
    ("jempp-table2", "at-table2", "NCSN", "FID"): (25.3, 25.32),
    ("sada-table1", "at-table2", "IGEBM (K=60)", "IS"): (8.30, 6.78),
    ("sada-table1", "at-table2", "IGEBM (K=60)", "FID"): (37.9, 38.2),
    ("sada-table1", "at-table2", "VERA", "FID"): (30.5, 27.5),
    ("sada-table1", "at-table2", "SNGAN", "IS"): (8.59, 8.22),
    ("sada-table1", "at-table2", "CF-EBM (K=50)", "FID"): (16.7, 16.71),
    ("sada-table1", "at-table2", "DiffuRecov (K=30)", "IS"): (8.31, 8.30),
    ("sada-table1", "at-table2", "VAEBM (K=6)", "FID"): (12.2, 12.19),
}


def test_papers_agree_with_each_other_but_for_the_known_differences():
    found = {}
    for here, there, rows, columns in SAME:
        for row, other in rows:
            for column, twin in columns:
                pair = cell(here, row, column), cell(there, other, twin)
                if None not in pair and pair[0] != pair[1]:
                    found[here, there, row, column] = pair
    assert found == DIFFER


def test_jem_standard_ood_auc_agrees_with_ratio_to_a_point():
    for ours, theirs in [("SVHN", "SVHN"), ("CIFAR100", "CIFAR-100")]:
        jem = cell("jempp-supp-table2", ("JEM (K=20)", "max p(y|x)"), ours)
        assert cell("at-table4", (theirs, "standard"), "JEM") == pytest.approx(100 * jem, abs=1)


def test_published_names_the_id_and_what_there_is():
    with pytest.raises(KeyError, match="jempp-fig1.*states no numbers.*available: jempp-table1"):
        published("jempp-fig1")
    with pytest.raises(KeyError, match="jempp-table9.*no paper has that id"):
        published("jempp-table9")


def told(id, place):
    """The numbers in an artefact's notes on this place."""
    text = " ".join(n.text for n in ARTEFACTS[id].notes if place in n.place)
    return set(map(float, re.findall(r"\.?\d[\d.]*(?<!\.)", text)))


def test_every_known_difference_is_told_below_both_tables():
    """But for a number that is the other one, rounded."""
    for (here, there, row, column), (first, second) in DIFFER.items():
        if abs(first - second) > 0.05 or column == "IS":
            assert {first, second} <= told(here, PUBLISHED[there].source), (here, there, row, column)
            assert {first, second} <= told(there, PUBLISHED[here].source), (here, there, row, column)


SHOWS = re.compile(r"""\bbook\.(?:figure|table)\(\s*["']([\w.-]+)["']""")


def test_every_note_is_shown_by_one_notebook_exactly_once():
    """Book.figure and Book.table show the notes below: each id is shown once, in the notebook that it belongs to."""
    shown = Counter()
    for path in sorted(book.NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        source = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        shown.update((path.stem[:2], id) for id in SHOWS.findall(source))
    with_notes = {(a.notebook, id) for id, a in ARTEFACTS.items() if a.notes}
    assert len(with_notes) > 15 and {id: shown[id] for id in with_notes} == dict.fromkeys(with_notes, 1)
    texts = [(n.place, n.text) for a in ARTEFACTS.values() for n in a.notes]
    assert len(texts) == len(set(texts)), "a note that stands below two tables is shown twice"


def test_notes_are_one_line_each_with_their_place():
    for id, about in ARTEFACTS.items():
        lines = book.notes(id).splitlines()
        assert len(lines) == len(about.notes)
        assert all(re.fullmatch(r"- \*(JEM\+\+|SADA-JEM|AT-EBM) .+:\* [A-Z].+\.", line) for line in lines), lines


BROKEN = [  # what stands in at.yaml, what is put there, what the error says
    ("kind: figure", "kind: picture", "artefacts.at-fig1.kind: Input should be 'figure' or 'table'; got 'picture'"),
    ("    kind: figure\n", "", "artefacts.at-fig1.kind: missing; add it"),
    ("    title: Cont", "    tilte: Cont", "artefacts.at-fig1.tilte: unknown key"),
    ("    kind: figure\n", "    kind: figure\n    kind: table\n", 'is not YAML .*duplicate key "kind"'),
    ("  at-fig2:", "  at-fig1:", 'is not YAML .*duplicate key "at-fig1"'),
    ("  at-fig1:", "  sada-fig1:", "artefacts.sada-fig1: expected an id that begins with at-"),
    (
        "[Ours, AT, 9.10, 13.21]",
        "[Ours, AT, 9.10]",
        "at-table2.published: rows.0 has 3 cells; expected 4, one for each column",
    ),
    (
        "[Ours, AT, 9.10, 13.21]",
        "[Ours, AT, [9.10], 13.21]",
        "rows.0.2: expected a number, a text, true, false or null; got",
    ),
    ("data: []", "data: primary", "artefacts.at-fig1.data: expected a list; got 'primary'"),
    ('notebook: "10"', "notebook: 10", "artefacts.at-fig1.notebook: Input should be a valid string; got 10"),
    ("text: AUC in per cent.", "text:", "artefacts.at-table4.notes.0.text: Input should be a valid string; got None"),
    ("claims: []\n", "", "claims: missing; add it"),
    ("name: AT-EBM", "name: [", "is not YAML"),
]


@pytest.mark.parametrize("old, new, says", BROKEN)
def test_a_broken_file_is_named_with_the_key_and_what_was_expected(tmp_path, old, new, says):
    text = (papers.FOLDER / "at.yaml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "at.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(data.DataError, match=f"at.yaml.*{says}.*: mend it, or git checkout at.yaml$") as caught:
        papers.read(tmp_path / "at.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, says", [(None, "missing"), (b"", "no section"), (b"- 1", "no section"), (b"\xff", "UTF-8")]
)
def test_a_file_that_is_none_is_named(tmp_path, content, says):
    if content is not None:
        (tmp_path / "at.yaml").write_bytes(content)
    with pytest.raises(data.DataError, match=rf"at\.yaml .*{says}"):
        papers.read(tmp_path / "at.yaml")


def test_claims_and_settings_have_their_place_beside_the_tables(tmp_path):
    text = (papers.FOLDER / "at.yaml").read_text(encoding="utf-8")
    rows = {
        "claims": "[{section: '4.4', claim: A larger K is better., runs: [a, b], measure: fd_clf, verdict: falls}]",
        "settings": "[{name: rate, text: 1.0e-4, code: null, file: train.py, line: 3}, {name: K, text: 25, code: 40}]",
    }
    for key, value in rows.items():
        text = text.replace(f"{key}: []", f"{key}: {value}")
    (tmp_path / "at.yaml").write_text(text, encoding="utf-8")
    read = papers.read(tmp_path / "at.yaml")
    assert read.claims[0].runs == ("a", "b") and read.claims[0].verdict == "falls"
    assert [(s.text, s.code, s.line) for s in read.settings] == [(1e-4, None, 3), (25, 40, None)]
    (tmp_path / "at.yaml").write_text(text.replace("measure: fd_clf, ", ""), encoding="utf-8")
    with pytest.raises(data.DataError, match="at.yaml, claims.0.measure: missing; add it"):
        papers.read(tmp_path / "at.yaml")


def test_the_files_are_part_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert "lib.papers" in project["packages"] and "*.yaml" in project["package-data"]["lib.papers"]
    assert {p.stem for p in papers.FOLDER.glob("*.yaml")} == set(papers.NAMES) == set(PAPERS)
