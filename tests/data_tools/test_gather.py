"""Gathering text: from the standard library and the packages that are there, within limits, nothing lost silently."""

import gzip
import sys
import sysconfig
from pathlib import Path

import pytest

from data_tools.documents import Document, read_documents
from data_tools.ingest import gather_text
from tests.data_tools.texts import refusal


def gather(folder: Path, source: str, *overrides: str) -> list[Document]:
    gather_text.main([f"folder={folder}", f"sources=[{source}]", *overrides])
    return list(read_documents(folder / "documents" / f"{source}.jsonl.gz"))


@pytest.fixture
def stdlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of a few files."""
    root = tmp_path / "lib"
    for name, data in {
        "b.py": b"x = 1\n",
        "a/c.py": "# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"),
        "a/empty.py": b" \n",
        "bad.py": b"x = '\xe9'\n",
        "long.py": b"x = 1\n" * 100,
        "a/__pycache__/d.py": b"x = 1\n",
        "site-packages/e.py": b"x = 1\n",
        "a/f.txt": b"text",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(root) if name == "stdlib" else None)
    return root


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with two packages, found through sys.path as Python finds all of them."""
    site = tmp_path / "site"
    for name, version in (("Zeta", "2.0"), ("alpha", "1.0")):
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n\nAll about {name}.\n")
        (site / f"{name}_guide.md").write_text(f"# {name} is naïve\n", encoding="utf-8")
        (site / f"{name}.rst").write_bytes(b"\xff\xfe")
        (site / f"{name}.py").write_text("x = 1\n")
        listed = [f"{info.name}/METADATA", f"{name}_guide.md", f"{name}.rst", f"{name}.py", f"{name}_lost.md"]
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in listed))
    monkeypatch.setattr(sys, "path", [str(site)])
    return site


def test_sources_of_the_standard_library_become_documents(
    stdlib: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = gather(tmp_path, "stdlib", "max_document_bytes=100")
    assert [(d.id, d.text, d.source) for d in documents] == [
        ("stdlib/a/c.py", "# -*- coding: latin-1 -*-\nx = 'é'\n", "stdlib"),
        ("stdlib/b.py", "x = 1\n", "stdlib"),
    ]
    assert [d.metadata["path"] for d in documents] == ["a/c.py", "b.py"]
    assert all(d.added for d in documents)
    n_bytes = sum(len(d.text.encode()) for d in documents)
    printed = capsys.readouterr().out
    path = tmp_path / "documents/stdlib.jsonl.gz"
    assert printed == f"{path}: 2 documents, {n_bytes} bytes of text (1 undecodable, 1 too long)\n"


def test_documentation_of_packages_becomes_documents(packages: Path, tmp_path: Path) -> None:
    documents = gather(tmp_path, "package_docs")
    assert [d.id for d in documents] == [
        "alpha/1.0/alpha-1.0.dist-info/METADATA",
        "alpha/1.0/alpha_guide.md",
        "Zeta/2.0/Zeta-2.0.dist-info/METADATA",
        "Zeta/2.0/Zeta_guide.md",
    ]
    assert documents[1].text == "# alpha is naïve\n"
    assert documents[1].metadata == {"package": "alpha", "version": "1.0", "path": "alpha_guide.md"}


def test_a_package_that_two_environments_hold_is_gathered_once(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = gather(tmp_path / "once", "package_docs")
    (tmp_path / "base").symlink_to(packages)
    monkeypatch.setattr(sys, "path", [str(packages), str(tmp_path / "base")])
    twice = gather(tmp_path / "twice", "package_docs")
    assert [d.id for d in twice] == [d.id for d in once]


def test_this_python_has_both_sources_and_max_bytes_limits_each(tmp_path: Path) -> None:
    gather_text.main([f"folder={tmp_path}", "max_bytes=30_000"])
    for source in ("stdlib", "package_docs"):
        documents = list(read_documents(tmp_path / f"documents/{source}.jsonl.gz"))
        assert 0 < sum(len(d.text.encode()) for d in documents) <= 30_000
        assert {d.source for d in documents} == {source}
        assert len({d.id for d in documents}) == len(documents)


def test_less_text_is_the_front_of_more(stdlib: Path, tmp_path: Path) -> None:
    more, less = (gather(tmp_path / str(n), "stdlib", f"max_bytes={n}") for n in (1000, 40))
    assert [d.id for d in more[:1]] == [d.id for d in less]
    assert len(more) == 3


@pytest.mark.parametrize(
    ("limit", "left_out"),
    [("max_bytes=1", "(0 undecodable, 0 too long)"), ("max_document_bytes=1", "(1 undecodable, 3 too long)")],
)
def test_limits_that_leave_nothing_are_named_and_leave_no_file(
    stdlib: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: str, left_out: str
) -> None:
    message = refusal(gather_text.main, [f"folder={tmp_path}", "sources=[stdlib]", limit], capsys)
    assert message.startswith("stdlib: no text was found within max_bytes=")
    assert limit in message
    assert message.endswith(f"{left_out}; raise them, or leave this source out")
    assert list((tmp_path / "documents").iterdir()) == []


def test_unknown_and_empty_sources_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(gather_text.main, [f"folder={tmp_path}", "sources=[stdlib, wiki, web]"], capsys)
    for source in ("wiki", "web"):
        assert f"sources: {source} is not one of stdlib, package_docs" in message
    assert refusal(gather_text.main, ["sources=[]"], capsys) == "sources is empty; give [stdlib, package_docs]"
    assert not (tmp_path / "documents").exists()


def test_the_files_are_gzipped_json_lines(stdlib: Path, tmp_path: Path) -> None:
    gather(tmp_path, "stdlib")
    with gzip.open(tmp_path / "documents/stdlib.jsonl.gz", "rt", encoding="utf-8") as file:
        assert [line[:6] for line in file] == ['{"id":'] * 3
