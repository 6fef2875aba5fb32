"""The text that every Python carries: parts that do not touch, the same at every call."""

import ast
import inspect
import textwrap
from pydoc_data.topics import topics

import pytest
from occ_llm import text
from occ_llm.errors import OccError
from occ_llm.text import python_documents, python_text


@pytest.fixture(scope="module")
def parts():
    return {part: python_documents(part) for part in ("train", "calibration", "heldout")}


def test_the_parts_share_no_document_and_no_package(parts):
    names = [set(documents) for documents in parts.values()]
    assert not names[0] & names[1] | names[0] & names[2] | names[1] & names[2]
    packages = [{n.split("/")[0] for n in part if n.startswith("module")} for part in names]
    assert not packages[0] & packages[1] | packages[0] & packages[2] | packages[1] & packages[2]


def test_train_is_most_of_it_and_the_rest_is_enough_to_measure_with(parts):
    sizes = {part: sum(map(len, documents.values())) for part, documents in parts.items()}
    assert sizes["train"] > 0.7 * sum(sizes.values())
    assert min(sizes.values()) > 50_000


def test_it_is_the_same_at_every_call(parts):
    assert python_documents("heldout") == parts["heldout"]
    assert python_text("heldout") == "\n\n\n".join(parts["heldout"].values())
    assert list(parts["heldout"]) == sorted(parts["heldout"])


def test_topics_are_those_of_help(parts):
    found = {name: doc for documents in parts.values() for name, doc in documents.items() if name.startswith("topic")}
    assert len(found) > 60
    for name, document in found.items():
        assert document == topics[name.removeprefix("topic ")].strip()


def test_documents_of_modules_are_their_docstrings(parts):
    found = {name: doc for documents in parts.values() for name, doc in documents.items()}
    document = found["module textwrap"]
    assert inspect.cleandoc(textwrap.__doc__) in document
    assert inspect.getdoc(textwrap.dedent) in document
    assert inspect.getdoc(textwrap.TextWrapper) in document
    assert "import re" not in document


def test_tests_and_installed_packages_are_left_out(parts):
    names = [name for documents in parts.values() for name in documents]
    assert not [n for n in names if "site-packages" in n or "/test" in n or n.startswith("module test")]


def test_damaged_sources_are_passed_over(tmp_path):
    bad, good, binary = (tmp_path / name for name in ("bad.py", "good.py", "binary.py"))
    bad.write_text('"""A docstring in a file that does not parse."""\ndef')
    good.write_text('"""A docstring that is long enough to say something."""\nclass A:\n    """Short."""\n')
    binary.write_bytes(b"\x00\xff")
    assert list(text._docstrings_of(bad)) == []
    assert list(text._docstrings_of(binary)) == []
    assert list(text._docstrings_of(good)) == [ast.get_docstring(ast.parse(good.read_text()))]


def test_a_python_without_documentation_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(text, "_topics", lambda: {})
    with pytest.raises(OccError, match="neither its manual topics nor its library sources"):
        python_documents("train")
