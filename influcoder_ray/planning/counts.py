"""What each stage would do with given settings, told by metadata and by the rows that were looked at."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

from influcoder_ray.attribution.distribution import BINS
from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.blocks import epoch_blocks
from influcoder_ray.pipeline import wanted_stages
from influcoder_ray.planning.data import Survey
from influcoder_ray.planning.lengths import Models, PerRow
from influcoder_ray.planning.storage import FileSize, size_of_examples, size_of_table
from influcoder_ray.planning.work import Kind, Work
from influcoder_ray.stages import mark, sample, validate
from influcoder_ray.tables import schemas
from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.units import plan_units

_FLOAT32_BYTES, _FLOAT16_BYTES = 4, 2
# A backward pass takes twice a forward one (Kaplan et al., arXiv 2001.08361, section 2.1).
TRAINING = 3


class Counts:
    """What is to be counted once and is needed by several stages.

    Args:
        corpus, queries: the data as they were surveyed.
    """

    def __init__(self, settings: PipelineSettings, models: Models, corpus: Survey, queries: Survey) -> None:
        self.settings = settings
        self.models = models
        self.corpus = corpus
        self.queries = queries
        wanted = settings.sample.queries
        usable = queries.usable_rows
        self.sampled_queries = usable if wanted is None else min(wanted, usable)
        self.pool = min(settings.sample.pool, corpus.usable_rows)
        self.explored = min(settings.explore.examples, max(0, corpus.usable_rows - self.pool))

    @cached_property
    def of_corpus(self) -> PerRow:
        return self.models.per_row(self.corpus.examples)

    @cached_property
    def of_queries(self) -> PerRow:
        return self.models.per_row(self.queries.examples)

    @property
    def dimensions(self) -> int:
        """Numbers in a vector of the trained encoder."""
        if self.settings.distill.recipe == "spectral":
            return min(self.settings.embed.dimensions or self._directions, self._directions) + 2
        return self.models.reading.hidden

    @property
    def _directions(self) -> int:
        return min(self.settings.distill.dimensions, self.settings.sketch.width)

    @property
    def _text_dimensions(self) -> int:
        """Numbers in the vector of a text that is searched by beside it; 0 where none is."""
        return self.models.reading.hidden if self.settings.keeps_texts else 0

    def works(self) -> list[Work]:
        """The work of each stage that the settings want, in order; the report takes next to nothing."""
        stages: dict[str, Callable[[], Work]] = {
            "sample": self._sample,
            "sketch": self._sketch,
            "explore": self._explore,
            "distill": self._distill,
            "embed": self._embed,
            "attribute": self._attribute,
            "rerank": self._rerank,
            "evaluate": self._evaluate,
            "validate": self._validate,
            "mark": self._mark,
        }
        counted = self.corpus.counted and self.queries.counted
        return [
            replace(stages[stage](), rows_counted=counted)
            for stage in wanted_stages(self.settings)
            if stage in stages
        ]

    def _sample(self) -> Work:
        rows_per_unit = self.settings.sample.rows_per_unit
        written = 0.0
        units = 0
        for data, kept, chosen in (
            (self.queries, self.settings.sample.queries, self.sampled_queries),
            (self.corpus, self.settings.sample.pool, self.pool),
        ):
            cut = data.units(rows_per_unit, lines_whole=True)
            candidates = _kept(data, cut, kept)
            size, in_small_groups = _example_sizes(data)
            written += size.of(len(cut), candidates) + in_small_groups.of(1, chosen)
            units += len(cut)
        rows = self.queries.rows + self.corpus.rows
        return Work(
            "sample",
            units=units + 1,
            rows=rows,
            shared={"scan": rows},
            shared_units=units,
            bytes_written=round(written),
            rests_on=(*_rows_rest_on("corpus", self.corpus), *_rows_rest_on("queries", self.queries)),
        )

    def _sketch(self) -> Work:
        counts = (self.sampled_queries, self.pool)
        units = sum(self._sketch_units(count) for count in counts)
        queries, pool = self.of_queries, self.of_corpus
        return Work(
            "sketch",
            units=units,
            rows=sum(counts),
            tokens=round(_weighted(counts, (queries.teacher_tokens, pool.teacher_tokens))),
            shared={"gradients": _weighted(counts, (queries.gradient_flops, pool.gradient_flops))},
            shared_units=units,
            bytes_written=round(self._sketch_size.of(units, sum(counts))),
            rests_on=(*self._tokens_rest_on(), "the sample is taken to hold no content twice"),
        )

    def _explore(self) -> Work:
        cut = self.corpus.units(self.settings.sample.rows_per_unit)
        units = self._sketch_units(self.explored)
        reservoir = min(self.settings.explore.reservoir, max(0, self.corpus.usable_rows - self.pool))
        train_queries, train_pool = self._split(self.sampled_queries)[0], self._split(self.pool)[0]
        looking = _weighted(
            (train_queries, train_pool + reservoir),
            (self.of_queries.encoder_flops, self.of_corpus.encoder_flops),
        )
        size, in_small_groups = _example_sizes(self.corpus)
        kept = _kept(self.corpus, cut, self.settings.sample.pool + self.settings.explore.reservoir)
        written = (
            size.of(len(cut), kept)
            + in_small_groups.of(1, self.explored)
            + self._sketch_size.of(units, self.explored)
        )
        return Work(
            "explore",
            units=len(cut) + 1 + units,
            rows=self.corpus.rows + self.explored,
            tokens=round(self.explored * self.of_corpus.teacher_tokens),
            shared={
                "scan": self.corpus.rows,
                "gradients": self.explored * self.of_corpus.gradient_flops,
            },
            shared_units=max(1, min(len(cut), units)),
            alone={"encoder": looking},
            bytes_written=round(written),
            rests_on=("explored examples are taken to be as long as the corpus's others",),
        )

    def _distill(self) -> Work:
        reading, spec = self.models.reading, self.settings.familiarity
        numbers = self.models.encoder_parameters
        if self.settings.distill.recipe == "spectral":
            # The head's maps, their scale, and the directions.
            numbers += 2 * (reading.width + 1) * self._directions + 2 * reading.width
            numbers += self.settings.sketch.width * self._directions
        references = sum(min(spec.most_references, train) for train, _, _ in self._splits)
        trait_width = sum(reading.groups[: 2 * len(reading.layers) : 2]) + reading.groups[-1]
        written = _FLOAT32_BYTES * numbers + _FLOAT16_BYTES * references * trait_width
        workers = self.settings.workers.distill.max or 1
        return Work(
            "distill",
            units=2,
            tokens=round(self._training_tokens),
            shared=self._distillation,
            shared_units=workers,
            bytes_written=round(written) + self.models.tokenizer_bytes,
            rests_on=("checkpoints, of which the last two are kept, are not in the bytes",),
        )

    def _embed(self) -> Work:
        rows_per_unit = self.settings.embed.rows_per_unit
        cut = self.corpus.units(rows_per_unit)
        query_units = _units_of_table(self.sampled_queries, rows_per_unit)
        counts = (self.sampled_queries, self.corpus.usable_rows)
        schema = schemas.embeddings(
            self.dimensions,
            self.settings.embed.vectors,
            text_dimensions=self._text_dimensions or None,
        )
        size = size_of_table(schema, self.corpus.examples)
        units = len(cut) + query_units
        return Work(
            "embed",
            units=units,
            rows=self.sampled_queries + self.corpus.rows,
            tokens=round(_weighted(counts, (self.of_queries.encoder_tokens, self.of_corpus.encoder_tokens))),
            shared={
                "encoder": _weighted(counts, (self.of_queries.encoder_flops, self.of_corpus.encoder_flops))
            },
            shared_units=units,
            bytes_written=round(size.of(units, sum(counts))),
            rests_on=self._tokens_rest_on(),
        )

    def _attribute(self) -> Work:
        # Each unit of embed leaves a file, and a unit of attribute is of one file.
        cut = self.corpus.units(self.settings.embed.rows_per_unit)
        kept, queries = self.settings.kept_per_query, self.sampled_queries
        usable = self.corpus.usable_rows
        examples = self.corpus.examples
        near = self.settings.rerank.text_candidates
        ranked = queries * sum(min(kept, rows) + min(near, rows) for rows in cut)
        written = (
            size_of_table(schemas.GROUP_INFLUENCE, examples).of(len(cut), usable)
            + size_of_table(schemas.RANKINGS, examples).of(len(cut), ranked)
            + size_of_table(schemas.HISTOGRAM, examples).of(len(cut), len(cut) * _bins_filled(queries, cut))
            + size_of_table(schemas.ATTRIBUTIONS, examples).of(1, queries * min(kept, usable))
            + size_of_table(schemas.TEXT_NEIGHBOURS, examples).of(1, queries * min(near, usable))
        )
        return Work(
            "attribute",
            units=len(cut) + 1,
            rows=usable,
            shared={"search": search_flops(queries, usable, self.dimensions + self._text_dimensions)},
            shared_units=len(cut),
            bytes_written=round(written),
            rests_on=("reading the vectors from storage is taken to keep up with the search",),
        )

    def _rerank(self) -> Work:
        asked = self.sampled_queries * self.settings.rerank.per_query
        different = min(asked, self.corpus.usable_rows)
        held = round(different * self.pool / max(1, self.corpus.usable_rows))
        new = different - held
        units = self._sketch_units(new)
        examples = self.corpus.examples
        _, in_small_groups = _example_sizes(self.corpus)
        written = (
            self._sketch_size.of(units, new)
            + in_small_groups.of(1, new)
            + size_of_table(schemas.CONTENTS, examples).of(1, different)
            + size_of_table(schemas.RERANKED, examples).of(1, asked)
        )
        return Work(
            "rerank",
            units=units + 2,
            rows=different,
            tokens=round(new * self.of_corpus.teacher_tokens),
            shared={"gradients": new * self.of_corpus.gradient_flops},
            shared_units=units,
            bytes_written=round(written),
            rests_on=("at most: as if no two queries had a candidate in common",),
        )

    def _evaluate(self) -> Work:
        settings = self.settings
        (_, _, queries), (_, _, pool) = self._splits
        both = _weighted((queries, pool), (self.of_queries.encoder_flops, self.of_corpus.encoder_flops))
        # Each seed's encoder and the untrained one, and both sides once more, by familiarity and dimensions.
        encoders = (settings.evaluate.seeds + 2) * both
        exact = min(settings.evaluate.fidelity_examples // 2, queries, pool)
        gradients = exact * (self.of_queries.gradient_flops + self.of_corpus.gradient_flops)
        further = {k: (settings.evaluate.seeds - 1) * flops for k, flops in self._distillation.items()}
        pairs = size_of_table(schemas.EVALUATION_PAIRS, self.corpus.examples)
        return Work(
            "evaluate",
            units=2,
            tokens=round(
                _weighted((queries, pool), (self.of_queries.encoder_tokens, self.of_corpus.encoder_tokens))
            ),
            alone={**further, "encoder": encoders + further["encoder"], "gradients": gradients},
            bytes_written=round(pairs.of(1, queries * pool)),
            rests_on=("rank agreement, resampling and counting words are not counted",),
        )

    def _validate(self) -> Work:
        spec = self.settings.validate
        (_, _, test_queries), (_, _, test_pool) = self._splits
        pool, held_out = min(spec.pool, test_pool), min(spec.queries, test_queries // 2)
        designs = validate.designs(self.settings)
        examples = spec.steps * spec.batch_size * sum(design.kind != "before" for design in designs)
        # Measuring losses is a forward pass: half of one through activations and back.
        gradients = examples * self.of_corpus.gradient_flops
        gradients += len(designs) * held_out * self.of_queries.gradient_flops / 2
        # By the distilled encoder and by the untrained one.
        scoring = 2 * _weighted(
            (test_queries, pool), (self.of_queries.encoder_flops, self.of_corpus.encoder_flops)
        )
        size, _ = _example_sizes(self.corpus)
        written = (
            size_of_table(schemas.VALIDATION_LOSSES, self.corpus.examples).of(
                len(designs), len(designs) * held_out
            )
            + size_of_table(schemas.VALIDATION_SCORES, self.corpus.examples).of(1, test_queries * pool)
            + size.of(1, pool)
        )
        return Work(
            "validate",
            units=len(designs) + 2,
            rows=examples,
            tokens=round(examples * self.of_corpus.teacher_tokens),
            shared={"gradients": gradients},
            shared_units=len(designs),
            alone={"encoder": scoring},
            bytes_written=round(written),
            rests_on=("a fine-tuning step is taken for the gradients of its examples",),
        )

    def _mark(self) -> Work:
        spec = self.settings.report
        queries = min(spec.queries, self.sampled_queries)
        pairs = queries * min(spec.marked, spec.examples_per_query, self.corpus.usable_rows)
        units = -(-queries // mark.QUERIES_PER_UNIT)
        # Each query once for its gradient, and once for how its own tokens carry what its examples' do.
        flops = pairs * self.of_corpus.gradient_flops + 2 * queries * self.of_queries.gradient_flops
        tokens = pairs * self.of_corpus.teacher_tokens
        shares = size_of_table(schemas.TOKEN_SHARES, self.corpus.examples)
        _, in_small_groups = _example_sizes(self.corpus)
        return Work(
            "mark",
            units=units + 1,
            rows=pairs,
            tokens=round(tokens),
            shared={"gradients": flops},
            shared_units=units,
            bytes_written=round(in_small_groups.of(1, pairs) + shares.of(units, round(tokens))),
        )

    @cached_property
    def _sketch_size(self) -> FileSize:
        schema = schemas.sketches(self.settings.sketch.width, self.settings.sketch.dtype)
        return size_of_table(schema, self.corpus.examples, list_length=self.models.modules)

    def _sketch_units(self, examples: int) -> int:
        return _units_of_table(examples, self.settings.sketch.rows_per_unit)

    def _split(self, count: int) -> tuple[int, int, int]:
        shares = self.settings.sample
        return sample.split_sizes(count, shares.validation_share, shares.test_share)

    @cached_property
    def _splits(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Training, validation and test of queries and of the pool, what was explored in its training."""
        train, validation, test = self._split(self.pool)
        return self._split(self.sampled_queries), (train + self.explored, validation, test)

    @cached_property
    def _training_tokens(self) -> float:
        (queries, _, _), (pool, _, _) = self._splits
        return _weighted((queries, pool), (self.of_queries.encoder_tokens, self.of_corpus.encoder_tokens))

    @cached_property
    def _distillation(self) -> dict[Kind, float]:
        """FLOPs of the encoder in all epochs, their validation, and the measure of familiarity."""
        spec, each = self.settings.distill, (self.of_queries.encoder_flops, self.of_corpus.encoder_flops)
        (queries, validation_queries, _), (pool, validation_pool, _) = self._splits
        steps = len(
            epoch_blocks(
                queries,
                pool,
                queries_per_step=spec.queries_per_step,
                candidates_per_step=spec.candidates_per_step,
                seed=0,
                epoch=1,
            )
        )
        block = (min(spec.queries_per_step, queries), min(spec.candidates_per_step, pool))
        stepping = TRAINING * steps * _weighted(block, each)
        train = _weighted((queries, pool), each)
        validation = _weighted((validation_queries, validation_pool), each)
        if spec.recipe == "spectral":
            # The first epoch takes no steps; after each one the head is fitted to features of all texts.
            stepping, reading = (spec.epochs - 1) * stepping, spec.epochs * train
        else:
            stepping, reading = spec.epochs * stepping, 0.0
        most = self.settings.familiarity.most_references
        references = _weighted((min(most, queries), min(most, pool)), each)
        calibration = _weighted((min(most, validation_queries), min(most, validation_pool)), each)
        reading += (spec.epochs + 1) * validation + references + calibration
        return {"training": stepping, "encoder": reading}

    def _tokens_rest_on(self) -> tuple[str, ...]:
        return tuple(
            f"{data.looked_at:,} of {'' if data.counted else 'about '}{data.rows:,} {name} rows are tokenized"
            for name, data in (("corpus", self.corpus), ("query", self.queries))
        )


def search_flops(queries: int, rows: int, dimensions: int) -> float:
    """2 Q N d: the products of Q queries' vectors with N rows'. Choosing the best of them comes on top."""
    return 2.0 * queries * rows * dimensions


def _weighted(counts: Sequence[float], each: Sequence[float]) -> float:
    return sum(count * one for count, one in zip(counts, each, strict=True))


def _kept(data: Survey, units: Sequence[int], count: int | None) -> float:
    """The rows that a scan keeps of all its units: of each what can be used, and no more than asked."""
    share = data.usable_rows / data.rows
    return sum(min(rows * share, math.inf if count is None else count) for rows in units)


def _units_of_table(rows: int, rows_per_unit: int) -> int:
    """The units of a table of examples, which is written in small row groups."""
    whole, rest = divmod(rows, sample.ROWS_PER_GROUP)
    groups = (sample.ROWS_PER_GROUP,) * whole + ((rest,) if rest else ())
    file = DataFile(Place("examples.parquet"), "examples.parquet", "", groups, ())
    return len(plan_units([file], rows_per_unit=rows_per_unit, fingerprint=""))


def _example_sizes(data: Survey) -> tuple[FileSize, FileSize]:
    """Of tables of a data set's examples as scans write them, and in small row groups."""
    return size_of_examples(data.examples), size_of_examples(data.examples, sample.ROWS_PER_GROUP)


def _bins_filled(queries: int, units: Sequence[int]) -> float:
    """Rows of the histogram of a unit: all bins are written, and empty ones weigh next to nothing."""
    return min(BINS, queries * max(units, default=0))


def _rows_rest_on(name: str, data: Survey) -> tuple[str, ...]:
    usable = len(data.examples) / data.looked_at
    found = () if usable == 1 else (f"{name}: {usable:.1%} of {data.looked_at:,} rows can be used",)
    if data.files[0].where:
        passed = sum(part.passed for part in data.parts)
        found = (f"{name}: {data.meeting:.1%} of {passed:,} rows meet {name}.where", *found)
    if all(file.is_parquet for file in data.files) or data.counted:
        return found
    return (f"{name}: rows of JSON Lines are estimated by the bytes of some", *found)
