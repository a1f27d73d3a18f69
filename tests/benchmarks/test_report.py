"""The page on one model: from small results to HTML and Markdown."""

import base64
import json
import os
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from benchmarks.report.__main__ import main

FACTS = {"command": "python -m x --out <a|b>.json", "commit": "0123456789abcdef", "machine": {"cpu": "a CPU"}}


def entry(sampler, calls, frechet, spacing="trailing", **more):
    measures = {"precision": 0.6, "recall": 0.9, "density": 0.7, "coverage": 0.8, "class_total_variation": 0.02}
    found = {"sampler": sampler, "spacing": spacing, "calls": calls, "frechet": frechet, "frechet_se": 0.001}
    return found | measures | more


def quality(**setup):
    reference, built_in = entry("ddpm:fixed_large", 1000, 0.01), entry("dpmpp_2m", 5, 0.011, "quadratic")
    table = entry("fit<5>", 5, 0.0055, "own", table_sha256="ab", precision=0.65)
    compared = {"ratio": 1.1, "ratio_se": 0.02}
    return {
        **FACTS,
        "setup": {
            "process": {"checkpoint_sha256": "c0ffee"},
            "data": {"name": "digits", "num_train": 1545, "sha256": "d"},
            "features": {"name": "of a classifier", "sha256": "f"},
            "classifier": {"name": "another network"},
            "num": 10000,
        }
        | setup,
        "seeds": [1, 2, 3],
        "timing": {"batch_size": 64, "network_ms_per_call": 8.0, "ms_per_call": {"dpmpp_2m": 10.0}},
        "results": [reference, built_in, table],
        "reference": {k: v for k, v in reference.items() if k != "spacing"},
        "best_at_5": {k: built_in[k] for k in ("sampler", "spacing", "calls", "frechet")} | compared,
        "table_at_5": {k: table[k] for k in ("sampler", "spacing", "calls", "frechet", "table_sha256")}
        | compared
        | {"ratio": 0.55},
    }


def likelihood(**more):
    return {
        **FACTS,
        "checkpoint_sha256": "c0ffee",
        "data": "digits, test",
        "images": 252,
        "bits_per_dim": 2.9085,
        "standard_error_monte_carlo": 0.0052,
        "standard_error_population": 0.0183,
        "timesteps": [
            {"first": 0, "last": 0, "bits_per_dim_each": 1e-6},
            {"first": 1, "last": 9, "bits_per_dim_each": 0.1},
            {"first": 10, "last": 999, "bits_per_dim_each": 0.002},
        ],
    } | more


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quality.json").write_text(json.dumps(quality()))
    (tmp_path / "likelihood.json").write_text(json.dumps(likelihood()))
    Image.new("L", (4, 4)).save(tmp_path / "five_calls.png")
    return tmp_path


class Page(HTMLParser):
    """The cells of the table's rows, the sources of pictures, and everything that is said."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.pictures, self.said, self.links = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])
        self.links += [value for name, value in attrs if name in ("href", "src") and not value.startswith("data:")]

    def handle_data(self, data):
        if self.lasttag in ("td", "th") and data.strip():
            self.rows[-1].append(data)
        self.said.append(data)


def test_one_page_without_arguments(folder, capsys):
    assert main(["--picture", "five_calls.png", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["checkpoint_sha256"], report["bits_per_dim"]) == ("c0ffee", 2.9085)
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    head, built_in, table, reference = page.rows
    assert built_in == [
        "dpmpp_2m, quadratic (built-in)", "5", "0.01100 ± 0.00100", "1.100 ± 0.020", "0.600", "0.700", "0.900", "0.800",
        "0.020", "1.28e+03",
    ]  # fmt: skip
    assert len(head) == len(built_in)
    assert table[0] == "fit<5> (table)"
    assert table[3:5] == ["0.550 ± 0.020", "0.650"]
    assert reference[1:4] == ["1,000", "0.01000 ± 0.00100", "1.000"]
    assert float(table[-1].replace(",", "")) == pytest.approx(64 / (5 * 8e-3), rel=1e-2)
    said = "".join(page.said)
    assert "2.9085 bits/dim (± 0.0052 Monte Carlo, ± 0.0183 over images)" in said
    assert "python -m x --out <a|b>.json" in said
    # Nothing is fetched: both pictures lie in the page.
    assert page.links == []
    pictures = [base64.b64decode(source.partition(",")[2]) for source in page.pictures]
    assert pictures[1] == (folder / "five_calls.png").read_bytes()
    assert pictures[0].startswith(b"\x89PNG")

    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert r"| fit\<5\> (table) | 5 | 0.00550 ± 0.00100 | 0.550 ± 0.020 | 0.650 |" in markdown
    shown = re.findall(r"\]\(([^)]+)\)", markdown)
    assert shown == ["report_files/measures.png", "report_files/picture_0.png"]
    assert [(folder / place).read_bytes() for place in shown] == pictures


def test_all_ways_are_timed_by_one_measurement(folder):
    slow = quality()
    slow["timing"] = {"batch_size": 64, "network_ms_per_call": 80.0, "ms_per_call": {}}
    slow["results"][1]["calls"] = slow["best_at_5"]["calls"] = 10
    (folder / "slow.json").write_text(json.dumps(slow))
    early = quality()
    for one in early["results"]:
        del one["density"]
    (folder / "early.json").write_text(json.dumps(early))
    assert main(["--quality", "early.json", "--quality", "quality.json", "--quality", "slow.json"]) == 0
    rows = Page((folder / "report.html").read_text(encoding="utf-8")).rows
    assert [(row[1], row[-1]) for row in rows if row[0].startswith("dpmpp_2m")] == [("5", "1.28e+03"), ("10", "640")]
    assert rows[1][5] == "0.700"  # of the same way in two files, what says more


def test_no_text_of_a_result_leaves_its_line(folder):
    hostile = quality(data={"name": "digits\n\n<b>", "num_train": 1545, "sha256": "d"}) | {"command": "x\n\n<script>"}
    (folder / "quality.json").write_text(json.dumps(hostile))
    assert main([]) == 0
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert "`x <script>`" in markdown
    assert r"# Quality, speed, coverage and likelihood: digits \<b\>, 1,545 images" in markdown
    assert not re.search("^<", markdown, re.MULTILINE)


def test_tables_of_one_name_are_two_rows(folder):
    other = quality()
    other["results"][2] |= {"table_sha256": "cd", "frechet": 0.007}
    other["table_at_5"]["table_sha256"] = "cd"
    (folder / "other.json").write_text(json.dumps(other))
    assert main(["--quality", "quality.json", "--quality", "other.json"]) == 0
    rows = Page((folder / "report.html").read_text(encoding="utf-8")).rows
    assert [row[2] for row in rows if row[0] == "fit<5> (table)"] == ["0.00550 ± 0.00100", "0.00700 ± 0.00100"]


def test_what_was_not_measured_is_said(folder, capsys):
    report = quality()
    del report["timing"], report["table_at_5"], report["reference"]
    for name in ("ratio", "ratio_se"):
        del report["best_at_5"][name]
    del report["setup"]["classifier"]  # as an earlier version wrote it
    for one in report["results"]:
        del one["density"], one["coverage"]
    (folder / "quality.json").write_text(json.dumps(report))
    (folder / "likelihood.json").unlink()
    assert main(["--out", "a/b.html"]) == 0
    assert "the likelihood was not measured" in capsys.readouterr().err
    page = Page((folder / "a" / "b.html").read_text(encoding="utf-8"))
    assert len(page.rows) == 2  # the head and the built-in sampler
    assert [page.rows[1][place] for place in (3, 5, 7, 8, 9)] == ["–"] * 5
    (folder / "likelihood.json").write_text(json.dumps(likelihood(timesteps=[])))
    assert main([]) == 0  # its panel is left empty
    assert "The likelihood was not measured." in "".join(page.said)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            quality(process={"checkpoint_sha256": "beef"}),
            "other.json: its checkpoint is beef, but that of",
        ),
        (quality(num=5), "other.json: its num is 5, but that of quality.json is 10000"),
        (quality(process={}), "other.json: its engine does not name its checkpoint"),
        (likelihood(), "other.json: no result of `benchmarks.quality`"),
        ([], "other.json: found no JSON object"),
        (
            quality() | {"best_at_5": quality()["best_at_5"] | {"ratio_se": -1}},
            "found the figure -1, expected at least 0 and below 1e+12",
        ),
    ],
)
def test_results_that_do_not_belong_together_are_refused(folder, capsys, other, says):
    (folder / "other.json").write_text(json.dumps(other))
    assert main(["--quality", "quality.json", "--quality", "other.json"]) == 2
    assert says in capsys.readouterr().err
    assert not list(folder.glob("report*"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            likelihood(checkpoint_sha256="beef"),
            "likelihood.json: its checkpoint is beef, but that of quality.json",
        ),
        (likelihood(checkpoint_sha256=None), "likelihood.json: its checkpoint is not named"),
        (quality(), "likelihood.json: no result of `benchmarks.likelihood`"),
    ],
)
def test_a_likelihood_of_another_model_is_refused(folder, capsys, content, says):
    (folder / "likelihood.json").write_text(json.dumps(content))
    assert main([]) == 2
    assert says in capsys.readouterr().err


def test_bad_arguments_are_one_line(folder, capsys):
    os.mkfifo("pipe.png")
    for arguments, says in (
        (["--out", "report.pdf"], "expected the name of a file that ends in .html"),
        (["--picture", "quality.json"], "--picture quality.json: cannot be read"),
        (["--picture", "pipe.png"], "--picture pipe.png: cannot be read (pipe.png: is a pipe, expected a regular file"),
        (["--quality", "none.json"], "none.json"),
    ):
        try:
            code = main(arguments)
        except SystemExit as left:  # argparse's own errors
            code = left.code
        assert code == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1
    assert not list(folder.glob("report*"))
