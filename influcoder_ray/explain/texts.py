"""The corpus examples behind what a search has found, checked to be those that were embedded."""

from collections.abc import Sequence

from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.stages.texts import corpus_examples
from influcoder_ray.tables.stores import refuse_unreachable


def examples_at(settings: PipelineSettings, places: Sequence[tuple[str, str]]) -> list[Example]:
    """The examples (N,) with the given ids and sources, in their order.

    Args:
        places: (example_id, source) each.

    Raises:
        UserError: the corpus is not where the settings say, or another one is.
    """
    if not places:
        return []
    refuse_unreachable([("corpus.path", settings.corpus.path)])
    found = corpus_examples(settings, {source for _, source in places})
    for example_id, source in places:
        held = found.get(source)
        if held is None or held.example_id != example_id:
            there = "no such row" if held is None else f"{held.example_id!r}"
            raise UserError(
                f"corpus.path: {settings.corpus.path} holds {there} where {example_id!r} stood ({source}) "
                "when it was embedded; give the corpus as it was, or run again"
            )
    return [found[source] for _, source in places]
