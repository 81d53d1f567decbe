"""The Python interface: which training examples push a model towards an answer, asked of a finished run."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from influcoder_ray.examples import Example
from influcoder_ray.examples.pieces import Piece, pieces
from influcoder_ray.explain import question as questions
from influcoder_ray.explain import tables
from influcoder_ray.explain.breakdown import breakdown
from influcoder_ray.explain.exact import exact_influence, influence_by_token
from influcoder_ray.explain.found import Extremes, Found
from influcoder_ray.explain.index import Index
from influcoder_ray.explain.question import Question
from influcoder_ray.explain.run import Run
from influcoder_ray.explain.search import search
from influcoder_ray.explain.texts import examples_at
from influcoder_ray.explain.vectors import QueryVector, Wanted, query_vector
from influcoder_ray.gradients.generation import generate
from influcoder_ray.stages.work.text_search import TEXTS

# An answer of the model's own has at most this many tokens, and at most half of the window.
_ANSWER_TOKENS = 128


class Attributor:
    """Asks a finished run which examples of its corpus influence an answer. Needs no Ray.

    Example:
        >>> from influcoder_ray import Attributor
        >>> attributor = Attributor.open("./run")
        >>> best = attributor.attribute("What is the capital of France?", "Paris.", k=5)
        >>> best.to_pandas()[["rank", "score", "percentile", "source", "response"]]
        >>> exact = attributor.rerank("What is the capital of France?", "Paris.", candidates=50, k=5)
        >>> tokens = attributor.explain_tokens("What is the capital of France?", "Paris.", exact)

    Where a response is left out, the run's causal LM gives it, greedily; `ask` shows it beforehand. A query
    is a text, or a `Question` of `ask` or `ask_text`, with which nothing has to be generated twice.

    Models are loaded when they are first needed, and kept: the encoder to search, the causal LM to answer and
    for gradients. The causal LM has to be the one that the run was made with.
    """

    def __init__(self, run: Run, *, answer_tokens: int | None = None, index: Index | None = None) -> None:
        self.run = run
        self._index = index
        self._answer_tokens = answer_tokens or min(_ANSWER_TOKENS, run.settings.model.max_tokens // 2)

    @staticmethod
    def open(
        path: str,
        *,
        overrides: Sequence[str] = (),
        answer_tokens: int | None = None,
        index: str | Path | None = None,
    ) -> "Attributor":
        """The attributor of a run's output folder.

        Args:
            path: the folder, local or s3://, wherever it was made.
            overrides: settings over the run's own, as "key.inner=value": "model.path=/models/moved".
            answer_tokens: the most tokens that an answer of the model's own may have; 128, or half of the
                model's window where that is less, if None.
            index: a folder that `influcoder-ray index` made, through which embeddings are then searched:
                approximately, and without reading all of them.

        Raises:
            UserError: there is no run there, its embeddings are not finished, or the index is not theirs.
        """
        run = Run.open(path, overrides)
        held = None if index is None else Index(Path(index), run.settings)
        return Attributor(run, answer_tokens=answer_tokens, index=held)

    def ask(self, query: str, response: str | None = None) -> Question:
        """A prompt and the response to explain; without one, the causal LM's own answer.

        Raises:
            UserError: either is empty, or the model cannot be asked.
        """
        if response is not None:
            return questions.asked(query, response)
        bare = questions.unanswered(query)
        answer = generate(self.run.teacher, bare, most_tokens=self._answer_tokens)
        return Question(questions.asked(query, answer).example, generated=True)

    def ask_text(self, text: str) -> Question:
        """Raw text to explain: the loss falls on all of it.

        Raises:
            UserError: it is empty.
        """
        return questions.asked_text(text)

    def attribute(
        self,
        query: str | Question,
        response: str | None = None,
        k: int = 20,
        *,
        least: int = 0,
        vector: Wanted = "auto",
    ) -> pa.Table:
        """The k most influential examples of the corpus by its embeddings, best first.

        Args:
            query, response: what is asked.
            k: how many; fewer where the corpus is smaller.
            least: how many of the least influential to give as well, behind the others, the least last.
            vector: what the query's vector is made of: "text", predicted by the encoder; "gradient", its own,
                for which the causal LM is loaded; "auto", the gradient where the run knows this query or the
                model is loaded already, else the text.

        Returns:
            Columns: rank (in the whole corpus), score (cosine), percentile, example_id, source, familiarity,
            unfamiliar, prompt, response. The schema's metadata has, as text, the query's `prompt`,
            `response`, `generated`, `vector` ("text" or "gradient") and `familiarity`, the corpus's `rows`
            and, where an index was searched, `index`: how well it finds, in a sentence. Ranks and
            percentiles are then those among what was found.

        Raises:
            UserError: the query or the corpus cannot be used.
            ValueError: k is below 1 or least below 0.
        """
        if k < 1 or least < 0:
            raise ValueError(f"k is {k} and least {least}; at least 1 and 0 are needed")
        asked = self._question(query, response)
        own, ends = self._search(asked, k, least, vector)
        found = [*ends.most, *(f for f in ends.least if f.rank > len(ends.most))]
        rows = [self._row(f, e) | {"rank": f.rank, "score": f.score} for f, e in self._with_examples(found)]
        return _table(rows, tables.ATTRIBUTED, self._about(asked, own, ends.rows))

    def rerank(
        self,
        query: str | Question,
        response: str | None = None,
        candidates: int = 50,
        k: int = 20,
        *,
        vector: Wanted = "auto",
    ) -> pa.Table:
        """The k best of the encoder's `candidates` best examples by exact influence, best first.

        Where the run has kept text vectors (its setting rerank.text_candidates), the `candidates` examples
        whose texts are most similar to the query's are candidates too.

        Exact influence is the cosine of sketched gradients, as the run's settings define it: what its
        `rerank` stage takes. Gradients that the run holds are not computed again. An example without gradient
        stands behind all others, its score null.

        Args:
            query, response, vector: as for `attribute`; the causal LM is loaded, unless the run holds every
                gradient that is needed.
            candidates: how many of the encoder's best to look at, and of the most similar texts.
            k: how many to give, at most all candidates.

        Returns:
            Columns: rank (among the candidates), score (exact influence), encoder_rank, encoder_score,
            percentile (all three of the encoder's search; null for what was found by its text alone),
            example_id, source, familiarity, unfamiliar, prompt, response. Metadata as for `attribute`.

        Raises:
            UserError: the query has no gradient, or the model or the corpus cannot be used.
            ValueError: k or candidates are below 1.
        """
        if k < 1 or candidates < 1:
            raise ValueError(f"k is {k} and candidates {candidates}; at least 1 is needed")
        asked = self._question(query, response)
        own, ends = self._search(asked, candidates, 0, "gradient" if vector == "auto" else vector)
        by_encoder = {f.source: f for f in ends.most}
        near = self._near(own, candidates) if self.run.keeps_texts else []
        pairs = self._with_examples([*ends.most, *(f for f in near if f.source not in by_encoder)])
        scores = exact_influence(self.run, asked.example, [example for _, example in pairs])
        rows = []
        for (found, example), score in zip(pairs, scores, strict=True):
            place: dict[str, Any] = {"encoder_rank": found.rank, "encoder_score": found.score}
            if found.source not in by_encoder:
                place = dict.fromkeys((*place, "percentile"))
            rows.append(self._row(found, example) | {"score": score} | place)
        # As `attribution.topk`: by score, equal ones by id; without gradient in the order of the search.
        compared = [row for row in rows if row["score"] is not None]
        compared.sort(key=lambda row: (-row["score"], row["example_id"]))
        rows = [*compared, *(row for row in rows if row["score"] is None)]
        ranked = [row | {"rank": rank} for rank, row in enumerate(rows[:k], 1)]
        return _table(ranked, tables.RERANKED, self._about(asked, own, ends.rows))

    def explain_tokens(
        self,
        query: str | Question,
        response: str | None = None,
        examples: pa.Table | None = None,
        *,
        k: int = 3,
    ) -> pa.Table:
        """Which tokens of some examples carry their influence on the query, and which of the query's.

        Exact, out of the backward passes that give the gradients (see `gradients.contributions`): a side's
        contributions add up to the cosine of the two whole gradients, or, where the run's influence is
        preconditioned, to that of the preconditioned sketches.

        Args:
            query, response: as for `attribute`.
            examples: rows of a table that `attribute` or `rerank` returned; its columns example_id and source
                are read. The k best of `rerank` if None.
            k: how many of the first rows are explained.

        Returns:
            One row a token, see `tables.TOKENS`: example_id, source, influence, side ("example" or "query"),
            position, token, part ("prompt", "response", "frame"), start, end, contribution.
            `examples.pieces.marks` makes stretches of a text out of them, for a page.

        Raises:
            UserError: an example or the query has no gradient, or the run's influence is no sum over tokens.
        """
        asked = self._question(query, response)
        chosen = self.rerank(asked, k=k) if examples is None else examples
        places = list(
            zip(*(chosen.slice(0, k)[name].to_pylist() for name in ("example_id", "source")), strict=True)
        )
        found = examples_at(self.run.settings, places)
        rows: list[dict[str, Any]] = []
        of_query = self._pieces(asked.example)
        for example, influence in zip(found, influence_by_token(self.run, asked.example, found), strict=True):
            held = {
                "example_id": example.example_id,
                "source": example.source,
                "influence": influence.influence,
            }
            rows += _token_rows(held | {"side": "example"}, self._pieces(example), influence.of_candidate)
            rows += _token_rows(held | {"side": "query"}, of_query, influence.of_query)
        return _table(rows, tables.TOKENS, self._about(asked))

    def breakdown(self, by: str | None = None, *, top: float = 0.01) -> pa.Table:
        """From which parts of the corpus the influence on all of the run's queries comes.

        Args:
            by: a column of the corpus, or a field within one (`meta.source`); the files if None.
            top: the share of the corpus that counts as the most influential.

        Returns:
            `tables.BREAKDOWN`, a row a part, those with the most of the top first.

        Raises:
            UserError: as `breakdown.breakdown`.
        """
        return breakdown(self.run.settings, by, top)

    def _question(self, query: str | Question, response: str | None) -> Question:
        if not isinstance(query, Question):
            return self.ask(query, response)
        if response is not None:
            raise ValueError("a Question has its response already; give one of the two")
        return query

    def _search(self, asked: Question, most: int, least: int, wanted: Wanted) -> tuple[QueryVector, Extremes]:
        own = query_vector(self.run, asked.example, wanted)
        if self._index is not None:
            return own, self._index.search(own.vector, most=most, least=least)
        return own, search(self.run.settings, own.vector, most=most, least=least)

    def _near(self, own: QueryVector, most: int) -> list[Found]:
        """The examples whose texts are most similar to the query's."""
        return search(self.run.settings, own.text, most=most, column=TEXTS).most

    def _with_examples(self, found: Sequence[Found]) -> list[tuple[Found, Example]]:
        examples = examples_at(self.run.settings, [(f.example_id, f.source) for f in found])
        return list(zip(found, examples, strict=True))

    def _row(self, found: Found, example: Example) -> dict[str, Any]:
        return {
            "percentile": found.percentile,
            "example_id": found.example_id,
            "source": found.source,
            "familiarity": found.familiarity,
            "unfamiliar": found.familiarity < self.run.settings.attribute.unfamiliar_below,
            "prompt": example.prompt,
            "response": example.response,
        }

    def _pieces(self, example: Example) -> list[Piece]:
        teacher = self.run.teacher
        (tokens,) = teacher.tokens([example])
        return pieces(
            example,
            tokens,
            teacher.tokenizer,
            max_tokens=teacher.spec.max_tokens,
            template=teacher.template,
        )

    def _about(
        self, asked: Question, own: QueryVector | None = None, rows: int | None = None
    ) -> dict[str, str]:
        about = {
            "prompt": asked.example.prompt,
            "response": asked.example.response,
            "generated": str(asked.generated).lower(),
        }
        if own is not None:
            about |= {"vector": own.made_of, "familiarity": repr(own.familiarity), "rows": str(rows)}
            if self._index is not None:
                about["index"] = self._index.about.told
        return about


def _table(rows: list[dict[str, Any]], schema: pa.Schema, about: Mapping[str, str]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema.with_metadata(dict(about)))


def _token_rows(
    held: Mapping[str, Any], found: Iterable[Piece], contributions: np.ndarray
) -> list[dict[str, Any]]:
    return [
        {
            **held,
            "position": position,
            "token": piece.text,
            "part": piece.part,
            "start": piece.start,
            "end": piece.end,
            "contribution": float(contribution),
        }
        for position, (piece, contribution) in enumerate(zip(found, contributions, strict=True))
    ]
