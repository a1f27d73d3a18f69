"""`python -m benchmarks.report`: one page on one model, with quality, speed, coverage and likelihood side by side.

Reads the results of `benchmarks.quality` and `benchmarks.likelihood`; measures nothing. All must be of one checkpoint.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from benchmarks.flags import report_file
from benchmarks.report.measures import ModelReport, read_results
from benchmarks.report.page import Picture, as_html, as_markdown
from benchmarks.report.plot import draw_measures
from commands.errors import reason, require_module
from commands.program import Report, make_parser, run_program, say
from commands.whole_files import whole_file, write_whole_text
from diffusion.errors import InputError
from diffusion.regular_files import read_regular

PROG = "benchmarks.report"
_FORMATS = {"PNG": "png", "WEBP": "webp", "JPEG": "jpeg"}
_MAX_PICTURE_BYTES = 2**26
_QUALITY, _LIKELIHOOD = Path("quality.json"), Path("likelihood.json")


def read_pictures(paths: Sequence[Path]) -> list[Picture]:
    """Pictures of samples, with their names as captions.

    Raises:
        InputError: no such file, or none that a browser shows.
    """
    pictures: list[Picture] = []
    for place, path in enumerate(paths):
        try:
            content = read_regular(path, _MAX_PICTURE_BYTES, "give a picture")
            with Image.open(io.BytesIO(content)) as image:
                found = image.format or "unknown"
                image.verify()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"--picture {path}: cannot be read ({reason(error)})") from None
        if found not in _FORMATS:
            raise InputError(f"--picture {path}: is {found}, expected {', '.join(_FORMATS)}")
        pictures.append((path.stem, f"picture_{place}.{_FORMATS[found]}", content))
    return pictures


def write_pages(report: ModelReport, samples: Sequence[Picture], out: Path) -> list[Path]:
    """Write `out` (HTML), the same in Markdown, and the folder of the latter's pictures; pages last."""
    caption = "quality, speed, coverage and likelihood"
    pictures = [(caption, "measures.png", draw_measures(report)), *samples]
    folder, markdown = out.with_name(f"{out.stem}_files"), out.with_suffix(".md")
    for _, name, content in pictures:
        with whole_file(folder / name) as temporary:
            temporary.write_bytes(content)
    write_whole_text(markdown, as_markdown(report, pictures, folder.name))
    write_whole_text(out, as_html(report, pictures))
    return [out, markdown]


def make_report(args: argparse.Namespace) -> Report:
    """Run the command; return its report."""
    require_module("matplotlib")
    likelihood = args.likelihood
    if likelihood is None and _LIKELIHOOD.is_file():
        likelihood = _LIKELIHOOD
    report = read_results(args.quality or [_QUALITY], likelihood)
    if likelihood is None:
        say(f"no {_LIKELIHOOD} here: the page says that the likelihood was not measured; give one with --likelihood")
    written = write_pages(report, read_pictures(args.picture or ()), args.out)
    return {
        "html": str(written[0]),
        "markdown": str(written[1]),
        "checkpoint_sha256": report.checkpoint_sha256,
        "ways": [{"kind": way.kind, "name": way.name, "calls": way.calls, "ratio": way.ratio} for way in report.ways],
        "bits_per_dim": None if report.likelihood is None else report.likelihood.bits_per_dim,
        "summary": "\n".join(map(str, written)),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(PROG, "One page on one model: quality, speed, coverage and likelihood, as HTML and Markdown.")
    parser.add_argument(
        "--quality", type=Path, action="append", metavar="FILE", help="a result of benchmarks.quality; several times "
        "for several, measured alike, of which the first says how long a call takes; default: quality.json"
    )  # fmt: skip
    parser.add_argument(
        "--likelihood", type=Path, metavar="FILE", help="a result of benchmarks.likelihood for the same checkpoint; "
        "default: likelihood.json, if it is there"
    )  # fmt: skip
    parser.add_argument(
        "--picture", type=Path, action="append", metavar="FILE", help="samples to show, such as samples/grid.png; its "
        "name is the caption; several times for several"
    )  # fmt: skip
    parser.add_argument(
        "--out", type=_page, default=Path("report.html"), metavar="FILE", help="default: report.html; the Markdown "
        "page report.md and its pictures, report_files/, are written beside it"
    )  # fmt: skip
    return run_program(parser, make_report, argv)


def _page(text: str) -> Path:
    path = report_file(text)
    if path.suffix.lower() not in (".html", ".htm"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected the name of a file that ends in .html")
    return path


if __name__ == "__main__":
    raise SystemExit(main())
