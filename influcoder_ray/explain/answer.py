"""What the command does: check what is asked, explain it, show it, and write it as JSON."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from transformers.utils import logging

from influcoder_ray.errors import UserError
from influcoder_ray.explain.attributor import Attributor
from influcoder_ray.explain.question import Question
from influcoder_ray.explain.show import Explanation, show
from influcoder_ray.json_file import refuse_folder, write_json

_WIDTH = 120


@dataclass(frozen=True)
class Request:
    """What a person asks for on the command line; see `command.explain`."""

    output: str
    query: str | None
    response: str | None
    text: str | None
    top: int
    rerank: int | None
    tokens: bool
    json_file: Path | None
    overrides: tuple[str, ...]
    index: Path | None = None


def answer(request: Request, console: Console | None = None) -> Explanation:
    """Explain and show; returns what was shown.

    Raises:
        UserError: an option, the run, its model or its corpus cannot be used.
    """
    _check(request)
    # Loading shows bars of its own.
    logging.disable_progress_bar()
    console = console or Console(width=None if sys.stdout.isatty() else _WIDTH)
    attributor = Attributor.open(request.output, overrides=request.overrides, index=request.index)
    question = _question(attributor, request, console)
    with console.status("Searching the embeddings"):
        exact = request.rerank is not None or request.tokens
        ends = attributor.attribute(
            question, k=request.top, least=request.top, vector="gradient" if exact else "auto"
        )
    reranked = None
    if request.rerank is not None:
        with console.status(f"Gradients of the {request.rerank:,} best"):
            reranked = attributor.rerank(question, candidates=request.rerank, k=request.top)
    most = ends.slice(0, request.top)
    tokens = None
    if request.tokens:
        with console.status("Which tokens carry it"):
            tokens = attributor.explain_tokens(
                question, examples=most if reranked is None else reranked, k=request.top
            )
    found = Explanation(question, most, ends.slice(request.top), reranked, tokens)
    show(found, console)
    if request.json_file is not None:
        write_json(request.json_file, as_json(found))
    return found


def as_json(found: Explanation) -> dict[str, Any]:
    """An explanation as plain values, by the names of the tables' columns."""
    about = {key.decode(): value.decode() for key, value in found.most.schema.metadata.items()}
    named: dict[str, Any] = {
        "prompt": about["prompt"],
        "response": about["response"],
        "generated": found.question.generated,
        "vector": about["vector"],
        "familiarity": float(about["familiarity"]),
        "rows": int(about["rows"]),
        "index": about.get("index"),
        "most": found.most.to_pylist(),
        "least": found.least.to_pylist(),
    }
    if found.reranked is not None:
        named["reranked"] = found.reranked.to_pylist()
    if found.tokens is not None:
        named["tokens"] = _by_example(found.tokens)
    return named


def _by_example(tokens: pa.Table) -> list[dict[str, Any]]:
    of_example: dict[str, dict[str, Any]] = {}
    for row in tokens.to_pylist():
        held: Mapping[str, Any] = {name: row.pop(name) for name in ("example_id", "source", "influence")}
        place = of_example.setdefault(held["source"], {**held, "example": [], "query": []})
        place[row.pop("side")].append(row)
    return list(of_example.values())


def _check(request: Request) -> None:
    if (request.query is None) == (request.text is None):
        raise UserError("--query: what is to be explained? give --query, or --text for raw text, one of them")
    if request.text is not None and request.response is not None:
        raise UserError("--response: raw text has none; give --query with it, or --text alone")
    refuse_folder(request.json_file)
    for option, given in (
        ("--query", request.query),
        ("--response", request.response),
        ("--text", request.text),
    ):
        if given is not None and not given.strip():
            raise UserError(f"{option}: is empty; give some text")


def _question(attributor: Attributor, request: Request, console: Console) -> Question:
    if request.text is not None:
        return attributor.ask_text(request.text)
    with console.status("The model answers" if request.response is None else "Reading the run"):
        return attributor.ask(request.query or "", request.response)
