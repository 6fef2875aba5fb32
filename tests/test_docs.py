"""The documents keep their promises: links resolve, commands parse, examples run, both languages agree."""

import functools
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "notebooks").glob("*.md")])
TRANSLATED = sorted(ROOT.rglob("docs/**/*.ko.md"))

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def each(pages):
    return pytest.mark.parametrize("page", pages, ids=name_of)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = (re.sub(r"[`*]", "", heading).strip().lower() for heading in HEADING.findall(prose(page)))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    broken = []
    for link in LINK.findall(prose(page)):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    return broken


def occ_commands(page: Path) -> list[str]:
    """Command lines of ``occ`` in the shell blocks of a page, without comments; a continued line is one line."""
    scripts = (body for language in ("sh", "bash", "console") for body in blocks(page, language))
    lines = itertools.chain.from_iterable(script.replace("\\\n", " ").splitlines() for script in scripts)
    commands = (shlex.split(line.strip().removeprefix("$ "), comments=True) for line in lines)
    return [shlex.join(command) for command in commands if command[:1] == ["occ"]]


COMMANDS = sorted({command for page in PAGES for command in occ_commands(page)})


@each(PAGES)
def test_relative_links_resolve(page):
    assert broken_links(page) == []


@each(PAGES)
def test_named_files_exist(page):
    """Files of this project that stand in the text as code, alone or as what Python runs."""
    folders = "benchmarks|docs|llm|notebooks|occ_jax|scripts|tests|toy"
    named = re.findall(rf"`(?:python )?((?:{folders})/[\w/.]+)`", prose(page))
    made_later = {"docs/results/"}  # by the first run of scripts/update_readme.py
    assert [path for path in named if path not in made_later and not (ROOT / path).exists()] == []


def test_a_link_that_leads_nowhere_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A title\n[a](page.md#a-title) [b](#a-title) [c](https://example.org)\n[d](no.md) [e](#no)\n"
        "```\n[f](in-code.md)\n```\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["no.md", "#no"]


def test_the_readme_shows_every_step_of_the_main_job():
    shown = {command.split()[1] for command in occ_commands(ROOT / "README.md")}
    assert shown >= {"compress", "evaluate", "inspect", "decompress", "generate", "models"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    """Every ``occ`` line of the documents is one that the command line takes, to the last argument."""
    tyro = pytest.importorskip("tyro")
    from occ_llm.cli.main import COMMANDS as subcommands

    words = shlex.split(command)[1:]
    parsed = tyro.extras.subcommand_cli_from_dict(subcommands, prog="occ", args=words)
    assert isinstance(parsed, subcommands[words[0]])


def test_a_command_that_does_not_exist_is_refused(capsys):
    tyro = pytest.importorskip("tyro")
    from occ_llm.cli.main import COMMANDS as subcommands

    with pytest.raises(SystemExit):
        tyro.extras.subcommand_cli_from_dict(
            subcommands, prog="occ", args=["compress", "tiny", "out", "--no-such-flag"]
        )
    capsys.readouterr()


@functools.cache
def run_examples(page: Path) -> dict[str, Any]:
    """All Python blocks of a page, one after the other, with the settings that JAX comes with; their names."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for body in blocks(page, "python"):
            exec(compile(body, name_of(page), "exec"), namespace)
    return namespace


@each([page for page in PAGES if blocks(page, "python")])
def test_python_examples_run(page):
    run_examples(page)


def test_rotation_costs_an_entropy_coder_bits_and_spares_integers_error():
    """What the page on outliers says about its example is what the example does."""
    page = run_examples(ROOT / "docs" / "theory" / "coordinate_relative_outliers.md")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        bits, rotated_bits = page["entropy_coded_bits"](page["w"]), page["entropy_coded_bits"](page["rotated"])
        error, rotated_error = page["int4_error"](page["w"]), page["int4_error"](page["rotated"])
    variances = np.asarray(page["column_scales"], np.float64) ** 2
    gain = 0.5 * (np.log2(variances.mean()) - np.log2(variances).mean())
    assert 0.8 * gain < rotated_bits - bits < gain
    assert rotated_error < 0.9 * error


@each(TRANSLATED)
def test_translations_have_the_same_parts(page):
    original = page.with_name(page.name.replace(".ko.md", ".md"))
    levels = [
        [len(line.split()[0]) for line in prose(p).splitlines() if line.startswith("#")] for p in (page, original)
    ]
    assert levels[0] == levels[1]
    assert prose(page).count("$$") == prose(original).count("$$")


@each(TRANSLATED)
def test_translations_and_originals_cite_the_same_numbers(page):
    """Measured numbers are corrected in both languages or in none."""
    original = page.with_name(page.name.replace(".ko.md", ".md"))
    decimals = [set(re.findall(r"\d+\.\d+", prose(p))) for p in (page, original)]
    assert decimals[0] == decimals[1]


@each(PAGES)
def test_pages_name_no_place_of_one_machine(page):
    assert re.findall(r"(?:/home/|/root/|/tmp/|/work/|/Users/)\S*", page.read_text(encoding="utf-8")) == []
