"""Put the outcome of every prediction of the toy experiment into its pages, from the record of a whole run.

    occ toy --out docs/results/toy --no-png --force    # measures; writes the record, the report and the figures
    python scripts/update_toy.py                       # rewrites the tables of both pages
    python scripts/update_toy.py --check               # exit code 1 unless the pages say what the record says

A page keeps everything outside of its two markers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro
from pages import update_pages

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path("docs/results/toy/results.json")
COMMAND = "python scripts/update_toy.py"

PAGES: Mapping[str, Mapping[Any, str]] = {
    "docs/experiments/toy_basis_vs_mlp.md": {
        "head": "| | outcome | evidence |",
        "rule": "|---|---|---|",
        True: "holds",
        False: "**refuted**",
        None: "open",
        "figure": "bytes of every function in every kind of coordinates",
    },
    "docs/experiments/toy_basis_vs_mlp.ko.md": {
        "head": "| | 판정 | 근거 |",
        "rule": "|---|---|---|",
        True: "맞음",
        False: "**틀림**",
        None: "미정",
        "figure": "좌표계마다 각 함수에 드는 바이트",
    },
}
"""Page -> what it says."""


def render(record: Mapping[str, Any], words: Mapping[Any, str]) -> str:
    """The table of outcomes and the summary figure."""
    rows = [f"| {p['name']} | {words[p['holds']]} | {p['evidence']} |" for p in record["predictions"]]
    lines = [words["head"], words["rule"], *rows, "", f"![{words['figure']}](../results/toy/summary.svg)"]
    return "\n".join(lines)


def main(check: bool = False, root: Path = ROOT) -> None:
    """Rewrite the pages, or check them.

    Args:
        check: change nothing; exit code 1 if a page has drifted from the record.
        root: of the repository.
    """
    try:
        record = json.loads((root / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{RECORD} cannot be read ({error}): run `occ toy --out {RECORD.parent} --no-png`") from None
    update_pages(PAGES, lambda words: render(record, words), root=root, record=RECORD, command=COMMAND, check=check)


if __name__ == "__main__":
    tyro.cli(main)
