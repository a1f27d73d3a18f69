"""What `mkdocs.yml` cannot say: a page for each decision, and measurements that lie outside of docs/."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_RESULTS = "benchmarks/results/"


def on_config(config: Any) -> Any:
    """List the pages of docs/decisions/ in the navigation."""
    pages = sorted(Path(config.docs_dir, "decisions").glob("*.md"))
    for section in config.nav:
        if "Decisions" in section:
            section["Decisions"] = [f"decisions/{page.name}" for page in pages]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Put the committed measurements on the site."""
    for path in sorted(Path(config.config_file_path).parent.glob(f"{_RESULTS}*.json")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to a measurement as they are in the repository become links to it on the site."""
    return markdown.replace(f"](../{_RESULTS}", "](results/")
