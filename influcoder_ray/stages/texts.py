"""The texts of a few examples of the corpus, read again from where they stand."""

from collections.abc import Iterable

from influcoder_ray.config import PipelineSettings
from influcoder_ray.examples import Example
from influcoder_ray.examples.columns import examples_from_cells
from influcoder_ray.stages.corpus import corpus_files
from influcoder_ray.tables.lookup import find_rows


def corpus_examples(settings: PipelineSettings, sources: Iterable[str]) -> dict[str, Example]:
    """The corpus examples at the named places ("<file>:<row>"), by place.

    Files that none of them names are not looked into.
    """
    columns, sources = settings.corpus.columns, list(sources)
    named = {source.rsplit(":", 1)[0] for source in sources}
    files = corpus_files(settings, identify=False, only=named)
    texts = {}
    for source, cells in find_rows(files, columns.names, sources).items():
        relative, _ = source.rsplit(":", 1)
        examples, _ = examples_from_cells(cells, columns, relative=relative)
        texts.update({e.source: e for e in examples})
    return texts
