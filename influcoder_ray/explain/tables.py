"""The Arrow schemas of what `Attributor` and `breakdown` return."""

import pyarrow as pa

_PLACE = [
    pa.field("example_id", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("familiarity", pa.float32(), nullable=False),
    pa.field("unfamiliar", pa.bool_(), nullable=False),
    pa.field("prompt", pa.string(), nullable=False),
    pa.field("response", pa.string(), nullable=False),
]

# `rank` is the place in the whole corpus, 1 the most influential; `score` the cosine of the two vectors;
# `percentile` the per cent of the other examples that rank below.
ATTRIBUTED = pa.schema(
    [
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("percentile", pa.float64(), nullable=False),
        *_PLACE,
    ]
)

# `rank` is the place among the candidates; `score` the exact influence, null where an example has no
# gradient; `encoder_rank`, `encoder_score` and `percentile` are what the encoder's search gave, null where
# an example was found by its text alone.
RERANKED = pa.schema(
    [
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("encoder_rank", pa.int64()),
        pa.field("encoder_score", pa.float32()),
        pa.field("percentile", pa.float64()),
        *_PLACE,
    ]
)

# One row a token: of the example (`side` "example") and of the query ("query"), in order of `position`. Over
# a side's rows `contribution` adds up to `influence`. `part` is "prompt", "response" or "frame" (what the
# template puts around); `start` and `end` are characters of that part's text, `token` what it stands for.
TOKENS = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("influence", pa.float64(), nullable=False),
        pa.field("side", pa.string(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("token", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
        pa.field("contribution", pa.float64(), nullable=False),
    ]
)

# One row a part of the corpus: `value` is what its rows have in the column that was named, or their file.
# `mean_score` is the mean of their scores for the whole query set. `top_rows` are among the most influential
# of the corpus, `lift` says how many times as often as rows of it at random; `attributions` counts places
# among queries' best.
BREAKDOWN = pa.schema(
    [
        pa.field("value", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("share_of_rows", pa.float64(), nullable=False),
        pa.field("mean_score", pa.float64(), nullable=False),
        pa.field("top_rows", pa.int64(), nullable=False),
        pa.field("share_of_top", pa.float64(), nullable=False),
        pa.field("lift", pa.float64(), nullable=False),
        pa.field("attributions", pa.int64(), nullable=False),
        pa.field("share_of_attributions", pa.float64(), nullable=False),
    ]
)
