"""What steers influence and its uses: how sketches are compared, what is selected, what is filtered out."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from influcoder_ray.spec import Spec


class InfluenceSpec(Spec):
    """How exact influence is taken from two sketches."""

    preconditioner: Literal["none", "mixed_hessian"] = Field(
        default="none",
        description="What sketches pass through before their cosine: nothing, or the inverse root of "
        "TrackStar's mixed Hessian, which turns down directions that most queries share.",
    )
    mixing: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="Share of the queries in the mixed Hessian; the rest is the pool's.",
    )
    damping: float = Field(
        default=1.0,
        gt=0,
        description="What is added to every eigenvalue of the mixed Hessian, as a multiple of their mean.",
    )


class QueryChoice(Spec):
    """Some of the queries, by id or by what a column of the query files holds; all if nothing is named."""

    ids: tuple[str, ...] = Field(default=(), description="Ids of queries.")
    column: str | None = Field(default=None, description="Column of the query files, such as a task's name.")
    values: tuple[str, ...] = Field(
        default=(), description="What that column holds in the queries that are meant, as text."
    )

    @model_validator(mode="after")
    def _one_way(self) -> "QueryChoice":
        if (self.column is None) != (not self.values):
            raise ValueError("column and values go together")
        if self.ids and self.column is not None:
            raise ValueError("name queries by ids or by column and values, not by both")
        return self

    @property
    def is_all(self) -> bool:
        """Whether no query is named, which means every one."""
        return not self.ids and self.column is None


class SelectSpec(Spec):
    """The training subset that is selected for the queries' task; none unless an amount is named."""

    fraction: float | None = Field(
        default=None, gt=0, le=1, description="How much: this share of the rows that have a score."
    )
    count: int | None = Field(default=None, ge=1, description="How much: so many rows.")
    tokens: int | None = Field(
        default=None,
        ge=1,
        description="How much: rows in order until the next one would exceed so many tokens, as counted by "
        "the causal LM's tokenizer and template within model.max_tokens, or as token_column says.",
    )
    above: float | None = Field(default=None, description="How much: every row with at least this score.")
    token_column: str | None = Field(
        default=None, description="Column of the corpus with each row's tokens, in place of counting them."
    )
    by: Literal["mean", "max", "round_robin"] = Field(
        default="mean",
        description="The score: the mean cosine with the queries, as in group_influence; the highest cosine "
        "with any of them; or no common score, but queries that take their best remaining row in turn.",
    )
    queries: QueryChoice = Field(default=QueryChoice(), description="The queries of the task.")
    group_by: str | None = Field(
        default=None,
        description="Column of the query files whose values make groups, each of which then counts as one "
        "query: the mean direction of its members. For by: max (then as in LESS) and round_robin.",
    )
    copies: int = Field(
        default=1, ge=0, description="Rows that are kept of one content, and of near-duplicates; 0 for any."
    )
    near: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Cosine of two rows' embeddings from which on they are near-duplicates; if unset, equal "
        "contents alone are.",
    )
    diversity: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Weight t of maximal marginal relevance: the next row has the highest (1 - t) x score - "
        "t x its highest cosine with what is selected already. 0 for the order of scores.",
    )
    candidates: float = Field(
        default=2.0,
        ge=1,
        description="Best rows that are looked at, as a multiple of those that are wanted. Limiting "
        "duplicates looks further by itself; diversity chooses among these alone.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "SelectSpec":
        _one_amount({name: getattr(self, name) for name in ("fraction", "count", "tokens", "above")})
        if self.by == "round_robin" and self.above is not None:
            raise ValueError("above goes with by: mean or max; in turns there is no common score")
        if self.by == "mean" and self.group_by is not None:
            raise ValueError("group_by goes with by: max or round_robin; a mean is over all queries")
        if self.diversity and (self.by == "round_robin" or self.above is not None):
            raise ValueError("diversity goes with by: mean or max, and with fraction, count or tokens")
        if self.near is not None and not self.copies:
            raise ValueError("near says what is limited and copies to how many; copies is 0, which is any")
        return self

    @property
    def is_wanted(self) -> bool:
        """Whether an amount is named."""
        return any(v is not None for v in (self.fraction, self.count, self.tokens, self.above))


class LabelSpec(Spec):
    """Which rows somebody has looked at, and what they found."""

    column: str = Field(description="Column with the label; a row in which it is null has none.")
    unwanted: tuple[str, ...] = Field(
        default=("1", "true"),
        description="The labels of rows that should go, as text; upper and lower case are the same.",
    )
    path: str | None = Field(
        default=None, description="Data files with ids and labels; if unset, column is one of the corpus."
    )
    id: str = Field(default="id", description="Column of these files with the ids of corpus rows.")

    @field_validator("unwanted")
    @classmethod
    def _as_compared(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(label.strip().lower() for label in labels)


class FilterSpec(Spec):
    """What is taken out because it influences unwanted answers; nothing unless told how much."""

    fraction: float | None = Field(
        default=None, gt=0, lt=1, description="How much: the share of scored rows expected to be unwanted."
    )
    count: int | None = Field(default=None, ge=1, description="How much: so many rows.")
    above: float | None = Field(default=None, description="How much: every row with at least this score.")
    labels: LabelSpec | None = Field(
        default=None,
        description="Labelled rows, on which the threshold is chosen where no amount is named, and on which "
        "precision and recall are told in any case.",
    )
    precision: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Precision on the labelled rows that is wanted: the threshold with the highest recall "
        "that has it. If unset, the threshold with the highest F1.",
    )
    by: Literal["max", "mean"] = Field(
        default="max", description="Influence: the highest cosine with any of the queries, or the mean."
    )
    measure: Literal["influence", "text"] = Field(
        default="influence",
        description="What is compared: the predicted gradients, or what the texts are about, which finds a "
        "label's rows where gradients carry no sign of it. For text the embed stage keeps a second vector of "
        "each row.",
    )
    queries: QueryChoice = Field(
        default=QueryChoice(),
        description="The unwanted answers; all queries that are not protected if unset.",
    )
    protected: QueryChoice | None = Field(
        default=None,
        description="Queries whose influence protects a row, such as refusals: the score is influence on the "
        "unwanted answers - weight x influence on the protected ones.",
    )
    weight: float = Field(default=1.0, gt=0, description="Weight of the protected queries' influence.")
    review_rows: int = Field(
        default=150,
        ge=3,
        description="Rows in the review: a third each with the highest scores, just taken out, just kept.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "FilterSpec":
        amounts = {name: getattr(self, name) for name in ("fraction", "count", "above")}
        _one_amount(amounts)
        named = [name for name, value in amounts.items() if value is not None]
        if self.precision is not None and (self.labels is None or named):
            raise ValueError("precision chooses the threshold on labels; name labels, and no amount")
        if self.protected is not None and self.protected.is_all:
            raise ValueError("protected: names no query; give ids, or column and values")
        return self

    @property
    def is_wanted(self) -> bool:
        """Whether it is told how much to take out."""
        amounts = (self.fraction, self.count, self.above, self.labels)
        return any(amount is not None for amount in amounts)


def _one_amount(amounts: dict[str, float | None]) -> None:
    named = [name for name, value in amounts.items() if value is not None]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} each say how much; name one of them")
