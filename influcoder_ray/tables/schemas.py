"""The Arrow schema of each table: the contract between stages and with whoever reads the output."""

from collections.abc import Mapping

import pyarrow as pa

TURN = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])

EXAMPLES = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("turns", pa.list_(TURN)),
        pa.field("source", pa.string(), nullable=False),
    ]
)

# Lines of JSON that stand together in a file of the corpus: how many, and the bytes of its text.
LINE_BLOCKS = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
    ]
)

ATTRIBUTIONS = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("percentile", pa.float32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("familiarity", pa.float32(), nullable=False),
        pa.field("unfamiliar", pa.bool_(), nullable=False),
    ]
)

# As `ATTRIBUTIONS`, by the cosine of the texts' own vectors.
TEXT_NEIGHBOURS = pa.schema([field for field in ATTRIBUTIONS if field.name != "percentile"])

# `score` is null where an example, or the query, has no gradient; the encoder's columns are null where its
# search found the example for other queries alone, or only the search by texts found it.
RERANKED = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("encoder_rank", pa.int32()),
        pa.field("encoder_score", pa.float32()),
        pa.field("source", pa.string(), nullable=False),
    ]
)

# An example, and the query that its influence is on.
PAIRS = pa.schema([*EXAMPLES, pa.field("query_id", pa.string(), nullable=False)])

# What stretches of an example's text add to its influence on a query: characters from `start` up to `end` of
# its `part`, "prompt" or "response". The rest of `influence` lies in what the template puts around.
TOKEN_SHARES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
        pa.field("contribution", pa.float32(), nullable=False),
        pa.field("influence", pa.float32(), nullable=False),
    ]
)

CONTENTS = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
    ]
)

GROUP_INFLUENCE = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("familiarity", pa.float32(), nullable=False),
    ]
)

RANKINGS = pa.schema(
    [
        pa.field("query", pa.int32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("familiarity", pa.float32(), nullable=False),
    ]
)

HISTOGRAM = pa.schema([pa.field("count", pa.int64(), nullable=False)])

# Influence on the queries that something is selected or filtered by. `row` is the row of the corpus file,
# `aim` the query (or group of them) that the row is nearest to, or is ranked for.
SCORES = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("aim", pa.int32(), nullable=False),
    ]
)

SCORE_COUNTS = pa.schema(
    [pa.field("bin", pa.int32(), nullable=False), pa.field("count", pa.int64(), nullable=False)]
)

LABELLED = pa.schema(
    [pa.field("score", pa.float32(), nullable=False), pa.field("unwanted", pa.bool_(), nullable=False)]
)

BARS = pa.schema([pa.field("score", pa.float32(), nullable=False)])

# `part` names the unit of the corpus as it was embedded.
CHOSEN = pa.schema(
    [
        pa.field("part", pa.string(), nullable=False),
        *SCORES,
        pa.field("source", pa.string(), nullable=False),
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("tokens", pa.int32()),
    ]
)

REVIEW = pa.schema(
    [
        pa.field("place", pa.string(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("percentile", pa.float32(), nullable=False),
        pa.field("removed", pa.bool_(), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
    ]
)

EVALUATION_PAIRS = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("exact", pa.float32(), nullable=False),
        pa.field("encoder", pa.float32(), nullable=False),
        pa.field("untrained_encoder", pa.float32(), nullable=False),
    ]
)

# Every query and pool example of the validation with each method's score, higher = more influence.
VALIDATION_SCORES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("encoder", pa.float32(), nullable=False),
        pa.field("exact", pa.float32(), nullable=False),
        pa.field("untrained_encoder", pa.float32(), nullable=False),
        pa.field("tfidf", pa.float32(), nullable=False),
    ]
)

# One row for each fine-tune and held-out query: `part` names what was trained on, `examples` of the pool, and
# `kind`, `by` and `draw` are its parts (see `retraining.designs`); `loss` in nats.
VALIDATION_LOSSES = pa.schema(
    [
        pa.field("part", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("by", pa.string(), nullable=False),
        pa.field("draw", pa.int32(), nullable=False),
        pa.field("examples", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("loss", pa.float32(), nullable=False),
    ]
)

QUARANTINE = pa.schema(
    [
        pa.field("stage", pa.string(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


def sketches(width: int, dtype: str) -> pa.Schema:
    """The sketches of examples, each `width` numbers of `dtype` ("float16" or "float32").

    `sketch` holds the unit-length sketch as little-endian bytes (`numpy.frombuffer(cell, dtype)`):
    written an order of magnitude faster than a list of numbers. Multiply by `sketch_norm` for the
    sketch itself. `module_norms` are the gradient's norms on each adapted module, in the model's order.
    Width and dtype stand in the schema's metadata.
    """
    item_bytes = {"float16": 2, "float32": 4}[dtype]
    return pa.schema(
        [
            pa.field("example_id", pa.string(), nullable=False),
            pa.field("content_hash", pa.string(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("sketch", pa.binary(width * item_bytes), nullable=False),
            pa.field("sketch_norm", pa.float32(), nullable=False),
            pa.field("gradient_norm", pa.float32(), nullable=False),
            pa.field("module_norms", pa.list_(pa.float32()), nullable=False),
            pa.field("loss", pa.float32(), nullable=False),
            pa.field("tokens", pa.int32(), nullable=False),
            pa.field("labelled_tokens", pa.int32(), nullable=False),
            pa.field("truncated", pa.bool_(), nullable=False),
        ],
        metadata={"sketch_width": str(width), "sketch_dtype": dtype},
    )


def candidates(dimensions: int | None) -> pa.Schema:
    """Rows that come into question for a selection, with what decides whether they are taken.

    Args:
        dimensions: numbers of their vectors; None where no two of them are compared.
    """
    vector = [] if dimensions is None else [pa.field("embedding", pa.list_(pa.float16(), dimensions))]
    return pa.schema(
        [
            pa.field("part", pa.string(), nullable=False),
            *SCORES,
            pa.field("source", pa.string(), nullable=False),
            pa.field("content_hash", pa.string(), nullable=False),
            pa.field("tokens", pa.int32(), nullable=False),
            *vector,
        ]
    )


def embeddings(
    dimensions: int,
    vectors: str = "float16",
    metadata: Mapping[str, str] | None = None,
    *,
    text_dimensions: int | None = None,
    foremost: int | None = None,
) -> pa.Schema:
    """The vectors of a corpus, `dimensions` numbers each: float16 of length 1, or int8.

    Parquet has no number of one byte, so an int8 vector is a cell of bytes
    (`numpy.frombuffer(cell, "int8")`) and stands for scale x int8 + offset, both of which are in the
    metadata of each file (`arrays.Steps`).
    `vectors` stands there too.

    `familiarity`, 0 to 100, says how near a text lies to what the encoder was trained on: the share, in
    per cent, of held-out texts of the sample that lie as far out or farther.

    Args:
        text_dimensions: numbers of `text_embedding`, the unit vector of what a text is about; None where
            there is no such column.
        foremost: along how many of the encoder's directions the vectors are kept, which the metadata then
            says as `foremost_dimensions`; None where along all of them, or there are none.
    """
    kept = {} if foremost is None else {"foremost_dimensions": str(foremost)}
    vector = pa.list_(pa.float16(), dimensions) if vectors == "float16" else pa.binary(dimensions)
    texts = []
    if text_dimensions is not None:
        texts = [pa.field("text_embedding", pa.list_(pa.float16(), text_dimensions), nullable=False)]
    return pa.schema(
        [
            pa.field("example_id", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("embedding", vector, nullable=False),
            pa.field("familiarity", pa.float32(), nullable=False),
            *texts,
        ],
        metadata={"vectors": vectors, **kept, **(metadata or {})},
    )
