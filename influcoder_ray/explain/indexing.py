"""The making of an approximate index: train its lists, add every vector, measure how well it finds.

One read of the embeddings, beside a sample to train on; some million vectors are in memory at once.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from influcoder_ray.attribution.cosine import Vectors
from influcoder_ray.attribution.scan import Scan
from influcoder_ray.attribution.topk import Ranking, merge
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.explain.index import ABOUT, About, Index, load_faiss, part_of, write_about
from influcoder_ray.pipeline import settings_of_run
from influcoder_ray.stages import embed
from influcoder_ray.stages.work.search import query_rows
from influcoder_ray.tables.arrays import vector_matrix
from influcoder_ray.tables.manifests import CommittedFile
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.vectors import read_vectors

# FAISS's own rules: so many lists for the root of the rows, and so many rows at least to train each on.
# https://github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index
_LISTS_PER_ROOT, _ROWS_PER_LIST = 4, 39
# Beyond, training takes more memory and time than lists half as long are worth.
_MOST_LISTS = 1 << 16
_ROWS_OF_A_PART = 1 << 22
_RECALL_AT, _QUERIES = 20, 100
# Beside the run's tables.
INDEX = "index"


def make_index(output: str, folder: Path | None, recall: float, console: Console | None = None) -> About:
    """Index the run in an output folder, and say how well the index finds.

    Args:
        folder: where to put it; `index` in the output folder if None.

    Raises:
        UserError: as `build_index`; or the output folder is not on this machine and no other one is named.
    """
    place = Place(output)
    if folder is None:
        if not place.is_local:
            raise UserError(f"--folder: {output} is not on this machine; name a folder that is")
        folder = Path(place.path) / INDEX
    settings = settings_of_run(output, ())
    console = console or Console()
    with Progress(console=console, transient=True) as bars:
        rows = sum(file.rows for file in embed.state(settings.root).files(embed.CORPUS))
        bar = bars.add_task("Indexing", total=rows)
        about = build_index(settings, folder, recall=recall, report=lambda done: bars.advance(bar, done))
    console.print(
        f"{folder}: {about.rows:,} examples in {about.lists:,} lists. {about.told}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return about


def build_index(
    settings: PipelineSettings,
    folder: Path,
    *,
    recall: float,
    report: Callable[[int], None] = lambda rows: None,
) -> About:
    """Make the index of a run's embeddings in a folder, in place of what is there.

    A search looks through as many lists, a power of two, as it takes to find `recall` of what the exact
    search finds for the run's own queries, at either end of the corpus; through all if it takes all.

    Args:
        folder: on this machine; it appears when the index is whole.
        report: takes the number of rows added since it was last called.

    Raises:
        UserError: the embeddings are not finished, FAISS is not installed, or the folder holds other things.
    """
    if folder.exists() and not (folder / ABOUT).exists():
        raise UserError(f"--folder: {folder} is there and is no index; give another, or remove it")
    record = embed.state(settings.root)
    fingerprint = record.finished()
    faiss = load_faiss()
    files = [file for file in record.files(embed.CORPUS) if file.rows]
    rows = sum(file.rows for file in files)
    if not rows:
        raise UserError(f"{settings.output}: there are no embeddings to index")
    asked = _both_ends(
        vector_matrix(query_rows(record.data_files(embed.QUERIES), ["example_id", "embedding"]))
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        whole = Path(name) / "whole"
        whole.mkdir()
        lists = _trained(faiss, record.root, files, rows, asked.shape[1], settings.seed)
        truth, parts = _added(faiss, lists, record.root, files, asked, whole, report)
        about = About(
            embeddings=fingerprint.digest,
            rows=rows,
            parts=parts,
            lists=lists.nlist,
            probes=lists.nlist,
            recall=1.0,
            recall_at=min(_RECALL_AT, rows),
            queries=len(asked) // 2,
        )
        write_about(whole, about)
        about = _measured(Index(whole, settings), asked, truth, recall)
        write_about(whole, about)
        if folder.exists():
            shutil.rmtree(folder)
        whole.rename(folder)
    return about


def _both_ends(queries: Vectors) -> npt.NDArray[np.float32]:
    """Some of the vectors (Q, d), evenly spread, and behind them the same turned round."""
    chosen = np.unique(np.linspace(0, len(queries) - 1, _QUERIES).astype(int))
    some = queries[chosen].astype(np.float32)
    return np.concatenate([some, -some])


def _trained(
    faiss: Any, root: Place, files: Sequence[CommittedFile], rows: int, dimensions: int, seed: int
) -> Any:
    """Empty lists whose centres are those of k-means over files drawn at random."""
    count = max(1, min(int(_LISTS_PER_ROOT * rows**0.5), rows // _ROWS_PER_LIST, _MOST_LISTS))
    wanted = min(rows, _ROWS_PER_LIST * count)
    order = np.random.default_rng(seed).permutation(len(files))
    parts: list[npt.NDArray[np.float32]] = []
    for place in order.tolist():
        if sum(map(len, parts)) >= wanted:
            break
        parts += (block.astype(np.float32) for block in read_vectors(root / files[place].path))
    # Numbers of 16 bits, as the vectors themselves: what is stored is what was embedded.
    lists = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dimensions),
        dimensions,
        count,
        faiss.ScalarQuantizer.QT_fp16,
        faiss.METRIC_INNER_PRODUCT,
        False,
    )
    lists.cp.seed = seed
    lists.cp.spherical = True
    sample = np.concatenate(parts)
    rng = np.random.default_rng(seed)
    lists.train(sample[rng.permutation(len(sample))[:wanted]])
    return lists


def _added(
    faiss: Any,
    lists: Any,
    root: Place,
    files: Sequence[CommittedFile],
    asked: npt.NDArray[np.float32],
    folder: Path,
    report: Callable[[int], None],
) -> tuple[npt.NDArray[np.int64], int]:
    """Add every vector and write the parts.

    Returns:
        The numbers (2 Q, K) of what the exact search finds, and how many parts there are.
    """
    scan = Scan(asked, _RECALL_AT)
    best: Ranking | None = None
    firsts: dict[str, int] = {}
    parts = total = 0

    def write_part() -> None:
        nonlocal parts
        faiss.write_index(lists, str(part_of(folder, parts)))
        lists.reset()
        parts += 1

    def adding(blocks: Iterator[Any]) -> Iterator[Any]:
        nonlocal total
        for block in blocks:
            vectors = block.astype(np.float32)
            lists.add_with_ids(vectors, np.arange(total, total + len(block), dtype=np.int64))
            total += len(block)
            report(len(block))
            yield block
            if lists.ntotal >= _ROWS_OF_A_PART:
                write_part()

    for file in files:
        first = firsts[file.path] = total

        def ids_of(rows: npt.NDArray[np.int64], first: int = first) -> npt.NDArray[np.object_]:
            # Equal scores in the order of numbers, as an index has them.
            return np.array([f"{number:015d}" for number in (first + rows).tolist()], dtype=object)

        found = scan.rank(adding(read_vectors(root / file.path)), ids_of, shard=file.path)
        best = found if best is None else merge([best, found], _RECALL_AT)
    if lists.ntotal:
        write_part()
    assert best is not None
    before = np.array([firsts[shard] for shard in best.shards.reshape(-1)]).reshape(best.shards.shape)
    return before + best.rows, parts


def _measured(
    index: Index, asked: npt.NDArray[np.float32], truth: npt.NDArray[np.int64], wanted: float
) -> About:
    """The index's account, with as few probes as reach the recall."""
    probes, found = 1, 0.0
    while True:
        best = index.nearest(asked, truth.shape[1], probes)
        hits = [
            len({number for number, _ in own} & set(t)) for own, t in zip(best, truth.tolist(), strict=True)
        ]
        found = sum(hits) / truth.size
        if found >= wanted or probes >= index.about.lists:
            return replace(index.about, probes=probes, recall=found)
        probes = min(2 * probes, index.about.lists)
