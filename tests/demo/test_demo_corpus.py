import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.demo.corpus import CORPUS_SCHEMA, opening_paragraph, standard_library_corpus
from influcoder_ray.errors import UserError


@pytest.fixture(scope="module")
def corpus() -> pa.Table:
    return standard_library_corpus()


def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **sources: str) -> None:
    """Puts a standard library of these source files in the place of the real one."""
    for module, source in sources.items():
        (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))


def test_two_readings_give_the_same_corpus(corpus: pa.Table) -> None:
    """Prevents a set or dict order from changing the rows, and with them every number of the demo."""
    assert standard_library_corpus().equals(corpus)


def test_ids_prompts_and_responses_are_unique(corpus: pa.Table) -> None:
    """Prevents a corpus that the pipeline refuses for a doubled id, or that counts one content twice."""
    for column in ("id", "prompt", "response"):
        assert max(Counter(corpus[column].to_pylist()).values()) == 1


def test_rows_are_a_few_thousand_short_texts_on_one_line(corpus: pa.Table) -> None:
    """Prevents empty, overlong or unprintable rows, and a corpus too small or too slow to be a demo."""
    assert corpus.schema.equals(CORPUS_SCHEMA)
    assert 1_500 <= corpus.num_rows <= 4_500
    for response in corpus["response"].to_pylist():
        assert 23 <= len(response) <= 400
        assert response == " ".join(response.split())
        assert response.isprintable()


def test_rows_name_public_things_of_their_module(corpus: pa.Table) -> None:
    """Prevents private helpers, and ids under which a person would not find the documentation."""
    for row in corpus.to_pylist():
        assert row["id"].startswith(row["module"] + ".")
        assert not any(part.startswith("_") for part in row["id"].split("."))
        assert row["id"] in row["prompt"]


def test_well_known_names_are_there_with_their_documentation(corpus: pa.Table) -> None:
    """Prevents a walk that misses a kind of definition: functions, classes, methods, parts of packages."""
    prompts = dict(zip(corpus["id"].to_pylist(), corpus["prompt"].to_pylist(), strict=True))
    assert prompts["shutil.copytree"] == "What does shutil.copytree do in Python?"
    assert prompts["threading.Event"] == "What is the class threading.Event for in Python?"
    assert prompts["random.Random.shuffle"] == "What does the method random.Random.shuffle do in Python?"
    assert {"asyncio.gather", "decimal.Decimal.quantize", "os.walk", "json.loads"} <= prompts.keys()


def test_no_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents side effects such as a window, a browser or a changed signal handler."""
    source = 'raise SystemExit("imported")\ndef copy(x):\n    "Copies the thing that it is given."\n'
    library(tmp_path, monkeypatch, shutil=source)
    before = set(sys.modules)
    assert standard_library_corpus()["id"].to_pylist() == ["shutil.copy"]
    assert set(sys.modules) == before


def test_names_behind_conditions_are_found_once_and_private_ones_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents losing what a module defines by platform, and taking both of its variants."""
    source = """
try:
    from _fast import nap
except ImportError:
    def nap():
        "Sleeps for a short while in plain Python."
if True:
    async def wait():
        "Waits until the thing has happened here."
else:
    def wait():
        "Waits in another way on other platforms."
class Box:
    "Holds one thing until somebody asks for it."
    @property
    def size(self):
        "The number of things that lie in the box."
    def _open(self):
        "Opens the box without asking anybody first."
class _Hidden:
    "Is not for anybody outside of this module."
    def shown(self):
        "Looks public but belongs to a private class."
"""
    library(tmp_path, monkeypatch, shutil=source)
    assert standard_library_corpus().select(["id", "prompt"]).to_pylist() == [
        {"id": "shutil.nap", "prompt": "What does shutil.nap do in Python?"},
        {"id": "shutil.wait", "prompt": "What does shutil.wait do in Python?"},
        {"id": "shutil.Box", "prompt": "What is the class shutil.Box for in Python?"},
        {"id": "shutil.Box.size", "prompt": "What does the property shutil.Box.size hold in Python?"},
    ]


def test_a_python_without_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a run over an empty corpus where a Python ships compiled files only."""
    library(tmp_path, monkeypatch)
    with pytest.raises(UserError, match="no sources of its standard library") as refused:
        standard_library_corpus()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Copy a tree\n    of many files to a place.\n\n    More.", "Copy a tree of many files to a place."),
        (
            "walk(top[, onerror=f()]) -> iterator\n\nYield every folder below the top.",
            "Yield every folder below the top.",
        ),
        (
            "A generator.\n\nFor each folder it yields its files.",
            "A generator. For each folder it yields its files.",
        ),
        ("Short.", None),
        ("Return the thing as a string, e.g.:\n\n  x", "Return the thing as a string."),
        ("Wait for the event to happen. Attributes:\n\n  x", "Wait for the event to happen."),
        ("An answer with a lone \ud800 surrogate in it.", None),
        ("word " * 100, None),
        ("One sentence of some length. " + "word " * 100, "One sentence of some length."),
    ],
)
def test_the_answer_is_the_first_paragraph_of_prose(docstring: str, expected: str | None) -> None:
    """Prevents answers that are signatures, examples, half sentences or text that no file can hold."""
    assert opening_paragraph(docstring) == expected


@given(st.text(max_size=900))
@settings(max_examples=50, deadline=None)
def test_any_docstring_gives_a_bounded_line_or_nothing(docstring: str) -> None:
    """Prevents a docstring of some Python release from breaking the demo."""
    text = opening_paragraph(docstring)
    if text is not None:
        assert 23 <= len(text) <= 400
        text.encode("utf-8")
        assert "\n" not in text
