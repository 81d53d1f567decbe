"""The settings of a pipeline: the specs of its parts, read from one file and written back to replay it."""

import difflib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from influcoder_ray.attribution.specs import FilterSpec, InfluenceSpec, SelectSpec
from influcoder_ray.encoder.specs import DistillSpec, EncoderSpec, FamiliaritySpec
from influcoder_ray.errors import UserError
from influcoder_ray.examples.data import DataSpec
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec, SketchSpec
from influcoder_ray.retraining.specs import ValidateSpec
from influcoder_ray.spec import Spec
from influcoder_ray.tables.hub import is_hub
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.s3 import holds_credentials


class SampleSpec(Spec):
    """The sample on which exact influence is computed."""

    pool: int = Field(default=3000, ge=10, description="Pool examples to sample from the corpus.")
    queries: int | None = Field(
        default=None, ge=10, description="Queries to sample from the query files; all if unset."
    )
    validation_share: float = Field(
        default=0.15, gt=0, lt=1, description="Share of either side on which the best epoch is chosen."
    )
    test_share: float = Field(
        default=0.25, gt=0, lt=1, description="Share of either side on which agreement is reported."
    )
    shared_content: Literal["refuse", "keep"] = Field(
        default="refuse",
        description="What to do when queries also stand in the corpus: refuse, or keep them there and "
        "leave them out of the pool sample.",
    )
    rows_per_unit: int = Field(
        default=100_000,
        ge=1,
        description="Corpus rows that are scanned as one unit. Nobody has counted JSON Lines yet: small "
        "files of them are joined until they have 2 KiB of text for each row.",
    )

    @model_validator(mode="after")
    def _leaves_training(self) -> "SampleSpec":
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on")
        return self


class SketchStageSpec(SketchSpec):
    """The CountSketch and the stage that computes it."""

    rows_per_unit: int = Field(
        default=64, ge=1, description="Examples that are sketched and committed as one unit."
    )


class ExploreSpec(Spec):
    """Training examples beyond the sample, chosen by what a first student expects of them."""

    examples: int = Field(
        default=0,
        ge=0,
        description="Examples of the corpus whose gradients are computed, and learnt from beside the "
        "sample's, because a first student expects them to matter to many queries; 0 for none.",
    )
    among: int = Field(
        default=20,
        ge=2,
        description="Examples of the corpus, drawn at random, that the first student looks through for each "
        "one that it chooses.",
    )

    @property
    def reservoir(self) -> int:
        """How many examples are looked through."""
        return self.examples * self.among


class EmbedSpec(Spec):
    """The embedding of the full corpus, and of the queries."""

    query_vectors: Literal["gradients", "texts"] = Field(
        default="gradients",
        description="What the queries' vectors are made of: their own gradients, which the sketch stage has "
        "computed, or their texts alone. A query that has no gradient, and an encoder that has no head, take "
        "the text.",
    )

    dimensions: int | None = Field(
        default=None,
        ge=1,
        description="Shared directions of the gradients, the foremost ones, along which vectors are kept, "
        "with two numbers more each; all of distill.dimensions if unset. Familiarity and text vectors "
        "stay as they are.",
    )
    vectors: Literal["float16", "int8"] = Field(
        default="float16",
        description="How the corpus's vectors are kept: two bytes a number, or one, with a scale and an "
        "offset for each dimension of a unit.",
    )
    rows_per_unit: int = Field(
        default=2048, ge=1, description="Corpus rows that are embedded and committed as one unit."
    )


class AttributeSpec(Spec):
    """The search of the corpus for each query."""

    top_k: int = Field(
        default=20,
        ge=1,
        description="Most influential examples kept for each query; rerank.candidates where that is more.",
    )
    unfamiliar_below: float = Field(
        default=5.0,
        ge=0,
        le=100,
        description="Familiarity, in per cent, below which a text counts as unfamiliar to the encoder: 5 "
        "marks what lies farther from the training texts than 95 % of held-out texts of the sample.",
    )


class RerankSpec(Spec):
    """The re-ranking of each query's best examples by exact influence."""

    candidates: int = Field(
        default=0,
        ge=0,
        description="Best examples of each query whose gradients are computed and which are then ordered by "
        "exact influence; 0 for none.",
    )
    text_candidates: int = Field(
        default=0,
        ge=0,
        description="Examples with texts most similar to each query's own, which are candidates beside the "
        "encoder's; 0 for none. The encoder predicts what gradients of many texts share, and a name is in "
        "few of them: texts find it. The embed stage then keeps a second vector of each row.",
    )

    @property
    def per_query(self) -> int:
        """The most candidates that a query can have."""
        return self.candidates + self.text_candidates


class EvaluateSpec(Spec):
    """The comparison with exact influence on the test split."""

    seeds: int = Field(
        default=1,
        ge=1,
        description="Encoders to distil and compare, with the run's seed, the next one and so on; with "
        "several, the encoder's figures have a spread over them. The run's own is the first.",
    )
    recall_at: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(10,), min_length=1, description="The k of each recall@k."
    )
    resamples: int = Field(
        default=200, ge=2, description="Bootstrap resamples of the test queries behind each spread."
    )
    fidelity_examples: int = Field(
        default=16, ge=0, description="Examples whose sketched cosines are held against exact ones."
    )


class ReportSpec(Spec):
    """The report."""

    title: str = Field(default="Training data attribution", description="The report's heading.")
    queries: int = Field(default=20, ge=1, description="Queries shown, test queries first.")
    examples_per_query: int = Field(default=5, ge=1, description="Influential examples shown for each query.")
    marked: int = Field(
        default=0,
        ge=0,
        description="Best examples of each shown query whose tokens are shaded by how much of the exact "
        "influence they carry, which takes their gradients once more; 0 for none.",
    )
    table_rows: int = Field(
        default=600,
        ge=0,
        description="Rows of the table of attributions at most; shown queries are always in it.",
    )


class WorkersSpec(Spec):
    """The workers of a stage and what each reserves."""

    min: int = Field(default=1, ge=1, description="Workers at least.")
    max: int | None = Field(
        default=None, ge=1, description="Workers at most; as many as the cluster has room for if unset."
    )
    cpus: float | None = Field(
        default=None, ge=0, description="CPUs a worker; all of a machine's if unset and it has no GPU."
    )
    gpus: float | None = Field(
        default=None, ge=0, description="GPUs a worker; one if unset and the cluster has any now."
    )
    hung_after_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="How long a worker that has work in hand, or loads its models, may give no sign of life "
        "before it counts as hung, is replaced, and says where it stood.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "WorkersSpec":
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}")
        return self


class ResourceSpec(Spec):
    """The workers of each stage that has any."""

    sample: WorkersSpec = Field(
        default=WorkersSpec(cpus=1, gpus=0), description="Workers that scan the corpus."
    )
    sketch: WorkersSpec = Field(
        default=WorkersSpec(),
        description="Workers that hold the causal LM, to sketch, explore, re-rank, validate and mark.",
    )
    distill: WorkersSpec = Field(default=WorkersSpec(max=1), description="Workers that train the encoder.")
    embed: WorkersSpec = Field(default=WorkersSpec(), description="Workers that hold the encoder.")
    attribute: WorkersSpec = Field(
        default=WorkersSpec(cpus=1, gpus=0),
        description="Workers that search the embeddings, on a GPU if they have one, select and filter.",
    )
    evaluate: WorkersSpec = Field(
        default=WorkersSpec(max=1), description="The worker that evaluates; it holds both models."
    )


# pydantic keeps a deprecated method of this name for code of its first version, which there is none of here.
warnings.filterwarnings("ignore", message='Field name "validate" in "PipelineSettings"', category=UserWarning)


class PipelineSettings(Spec):
    """Everything that decides a run."""

    output: str = Field(description="Output folder, local or s3://.")
    corpus: DataSpec = Field(description="The training data to attribute to.")
    queries: DataSpec = Field(description="The behaviour to explain.")
    model: ModelSpec = Field(description="The causal LM to explain.")
    encoder: EncoderSpec = Field(description="The encoder to distil into.")
    seed: int = Field(default=0, ge=0, description="Seed of everything random.")
    adapter: AdapterSpec = Field(
        default=AdapterSpec(), description="The adapter that gradients are taken on."
    )
    sketch: SketchStageSpec = Field(default=SketchStageSpec(), description="The sketch of gradients.")
    sample: SampleSpec = Field(default=SampleSpec(), description="The sample for exact influence.")
    influence: InfluenceSpec = Field(
        default=InfluenceSpec(), description="How exact influence is taken from sketches."
    )
    explore: ExploreSpec = Field(
        default=ExploreSpec(), description="The training examples that a first student asks for."
    )
    distill: DistillSpec = Field(default=DistillSpec(), description="The training of the encoder.")
    familiarity: FamiliaritySpec = Field(
        default=FamiliaritySpec(), description="How near a text lies to what the encoder was trained on."
    )
    embed: EmbedSpec = Field(default=EmbedSpec(), description="The embedding of the corpus.")
    attribute: AttributeSpec = Field(default=AttributeSpec(), description="The search.")
    rerank: RerankSpec = Field(default=RerankSpec(), description="The re-ranking by exact influence.")
    select: SelectSpec = Field(default=SelectSpec(), description="The selection of a training subset.")
    filter: FilterSpec = Field(
        default=FilterSpec(), description="The filtering out of what teaches unwanted answers."
    )
    evaluate: EvaluateSpec = Field(default=EvaluateSpec(), description="The evaluation.")
    validate: ValidateSpec = Field(  # type: ignore[assignment]
        default=ValidateSpec(), description="The proof by retraining."
    )
    report: ReportSpec = Field(default=ReportSpec(), description="The report.")
    workers: ResourceSpec = Field(default=ResourceSpec(), description="Workers and what they reserve.")
    max_quarantined: float = Field(
        default=0.25, ge=0, le=1, description="Share of unusable rows above which a stage fails."
    )

    @model_validator(mode="after")
    def _one_preconditioner(self) -> "PipelineSettings":
        if self.adapter.optimizer_state is not None and self.influence.preconditioner != "none":
            raise ValueError(
                "adapter.optimizer_state preconditions the pool and influence.preconditioner both sides; "
                "leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _dimensions_to_be_had(self) -> "PipelineSettings":
        wanted, trained = self.embed.dimensions, min(self.distill.dimensions, self.sketch.width)
        if wanted is None:
            return self
        if self.distill.recipe != "spectral":
            raise ValueError(
                f"embed.dimensions: distill.recipe {self.distill.recipe} trains for no fewer numbers than a "
                "vector has; leave it out, or take the recipe spectral"
            )
        if wanted > trained:
            raise ValueError(
                f"embed.dimensions: {wanted} are more than the {trained} that the head will have (the lesser "
                f"of distill.dimensions and sketch.width); give {trained} at most"
            )
        return self

    @model_validator(mode="after")
    def _usable_addresses(self) -> "PipelineSettings":
        for setting, address in self.addresses.items():
            if holds_credentials(address):
                # The address is not quoted: it would put the secret into a log.
                raise ValueError(f"{setting}: the address holds credentials; leave them to the environment")
        if is_hub(self.output):
            raise ValueError("output: the hub is read, not written; give a folder or s3://bucket/prefix")
        return self

    @property
    def addresses(self) -> dict[str, str]:
        """Every address (scheme://...) among the settings, by the dotted name of the setting."""
        return dict(_addresses(self.model_dump(mode="json"), ""))

    @property
    def root(self) -> Place:
        """The output folder."""
        return Place(self.output)

    @property
    def kept_per_query(self) -> int:
        """How many examples the search keeps for each query: at least as many as are re-ranked."""
        return max(self.attribute.top_k, self.rerank.candidates)

    @property
    def keeps_texts(self) -> bool:
        """Whether each embedded row has a second vector, of what its text is about."""
        return self.rerank.text_candidates > 0 or self.filter.measure == "text"

    def to_yaml(self) -> str:
        """The file that replays this run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_settings(path: str, overrides: Sequence[str] = ()) -> PipelineSettings:
    """Read settings from a YAML file, with `key.inner=value` overrides on top.

    Local paths become absolute, so that workers and replays find them.

    Raises:
        UserError: the file is not there or no YAML, a key is unknown, a value does not fit.
    """
    try:
        # As bytes: YAML is UTF-8 or UTF-16 whatever the locale says.
        fields = yaml.safe_load(Path(path).read_bytes())
    except OSError as error:
        raise UserError(
            f"--config: {path} cannot be read ({error.strerror}); give a settings file"
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: also a date that no calendar has
        raise UserError(f"--config: {path} is no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(fields, dict):
        raise UserError(
            f"--config: {path} holds no settings; it needs output, corpus, queries, model, encoder"
        )
    return settings_from(fields, source=path, overrides=overrides)


def settings_from(fields: dict[str, Any], *, source: str, overrides: Sequence[str] = ()) -> PipelineSettings:
    """Settings from plain values, with `key.inner=value` overrides put on top of them.

    Args:
        source: what to call their origin in an error.

    Raises:
        UserError: the first thing that does not fit, in one line.
    """
    for override in overrides:
        _override(fields, override)
    try:
        settings = PipelineSettings.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"{source}: {_first_fault(error)}") from error
    return _with_absolute_paths(settings)


def _with_absolute_paths(settings: PipelineSettings) -> PipelineSettings:
    def absolute(path: str) -> str:
        return Place(path).absolute().uri

    def local_if_there(path: str) -> str:
        return absolute(path) if Path(path).expanduser().exists() else path

    labels = settings.filter.labels
    if labels is not None and labels.path is not None:
        labels = labels.model_copy(update={"path": absolute(labels.path)})
    return settings.model_copy(
        update={
            "output": absolute(settings.output),
            "corpus": settings.corpus.model_copy(update={"path": absolute(settings.corpus.path)}),
            "queries": settings.queries.model_copy(update={"path": absolute(settings.queries.path)}),
            "model": settings.model.model_copy(update={"path": local_if_there(settings.model.path)}),
            "encoder": settings.encoder.model_copy(update={"path": local_if_there(settings.encoder.path)}),
            "adapter": settings.adapter.model_copy(
                update={"path": settings.adapter.path and local_if_there(settings.adapter.path)}
            ),
            "filter": settings.filter.model_copy(update={"labels": labels}),
        }
    )


def _addresses(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _addresses(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, str) and re.match(r"[a-z0-9]+://", value):
        yield name, value


def _override(fields: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set: {override!r} is no key=value; give for example --set sketch.width=8192")
    *outer, last = key.split(".")
    for part in outer:
        fields = fields.setdefault(part, {})
        if not isinstance(fields, dict):
            raise UserError(f"--set: {key}: {part} is a value, not a group of settings")
    try:
        fields[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--set: {key}: {text!r} is no YAML value") from error


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = _known_keys(fault["loc"][:-1])
        close = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        return f"{place}: unknown key; " + (
            f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
        )
    if fault["type"] == "missing":
        return f"{place}: missing; {_description(fault['loc'])}"
    message = fault["msg"].removeprefix("Value error, ")
    given = fault["input"]
    if isinstance(given, str) and holds_credentials(given):
        given = "an address with credentials in it"
    return f"{place}: {message}".removeprefix(": ") + (
        f", not {given!r}" if not isinstance(given, dict | BaseModel) else ""
    )


def _models_along(location: Sequence[int | str]) -> Iterator[type[BaseModel]]:
    model: type[BaseModel] = PipelineSettings
    yield model
    of_keys: Any = None
    for part in location:
        if of_keys is not None:
            annotation, of_keys = of_keys, None
        else:
            annotation = model.model_fields[str(part)].annotation if part in model.model_fields else None
        if get_origin(annotation) is Mapping:
            # Its keys are the user's own: the next part is one of them.
            of_keys = get_args(annotation)[1]
            continue
        # A group that may be left out is one of a union with None.
        kinds = (annotation, *get_args(annotation))
        group = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if group is None:
            return
        model = group
        yield model


def _known_keys(location: Sequence[int | str]) -> list[str]:
    *_, model = _models_along(location)
    return list(model.model_fields)


def _description(location: Sequence[int | str]) -> str:
    *_, model = _models_along(location[:-1])
    field = model.model_fields.get(str(location[-1]))
    return (field.description or "") if field else ""
