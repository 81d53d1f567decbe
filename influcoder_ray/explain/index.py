"""An approximate index of a run's embeddings: a query is held against a few lists of vectors, not all.

By FAISS (Douze et al., arXiv 2401.08281): k-means cuts the vectors into lists, and a search looks through
those whose centres are nearest to the query. It lies in several parts with the same centres, each of some
million vectors, which stay on the disk and are read as they are needed. `explain.indexing` makes one.

Shapes: N examples of the corpus, d embedding width.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from influcoder_ray.attribution.cosine import cosines
from influcoder_ray.attribution.distribution import percentile_of_rank
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.explain.corpus import Corpus
from influcoder_ray.explain.found import Extremes, Found

ABOUT = "about.json"


@dataclass(frozen=True)
class About:
    """What an index is of, and how well it finds.

    Attributes:
        embeddings: the fingerprint of the embeddings that it was made of.
        rows: N.
        parts: in which it lies.
        lists: into which the vectors are cut.
        probes: how many of them a search looks through.
        recall: the share of the truly best and least `recall_at` of `queries` of the run's own queries that
            a search found.
    """

    embeddings: str
    rows: int
    parts: int
    lists: int
    probes: int
    recall: float
    recall_at: int
    queries: int

    @property
    def told(self) -> str:
        """How a search goes, in a sentence."""
        return (
            f"A search looks through {self.probes:,} of {self.lists:,} lists, and found "
            f"{100 * self.recall:.1f}% of the {self.recall_at} most and least influential examples of "
            f"{self.queries} of the run's queries."
        )


class Index:
    """Searches a run's embeddings approximately.

    Args:
        folder: where `indexing.build_index` has put it, on this machine.

    Raises:
        UserError: there is none, it is of other embeddings than the run's now, or FAISS is not installed.
    """

    def __init__(self, folder: Path, settings: PipelineSettings) -> None:
        try:
            about = About(**json.loads((folder / ABOUT).read_bytes()))
        except FileNotFoundError as error:
            raise UserError(
                f"--index: {folder} holds no index; make one with `influcoder-ray index {settings.output}`"
            ) from error
        self._corpus = Corpus(settings)
        if about.embeddings != self._corpus.fingerprint.digest:
            raise UserError(
                f"--index: {folder} was made of other embeddings than the run's now; make it anew with "
                f"`influcoder-ray index {settings.output} --folder {folder}`"
            )
        self._faiss = faiss = load_faiss()
        self.about = about
        self._parts = [
            faiss.read_index(str(part_of(folder, part)), faiss.IO_FLAG_MMAP) for part in range(about.parts)
        ]

    def search(self, vector: npt.NDArray[np.float32], *, most: int, least: int = 0) -> Extremes:
        """The two ends of the corpus for a query, of what is found: ranks are one's place among that.

        It looks through more lists than usual where these do not hold as many examples as are wanted. A
        score is that of the exact search, to the last bit where vectors are kept in float16; a rank and a
        percentile are too good by as many examples as were missed.

        Args:
            vector: (d,) of the query; it is rounded to float16, as the corpus's are.
        """
        row = vector.astype(np.float16).astype(np.float32)[None]
        top, bottom = self._as_many(row, most), self._as_many(-row, least)
        cells = self._corpus.cells(np.array([number for number, _ in (*top, *bottom)], np.int64))
        rows = self.about.rows

        def found(rank: int, number: int, score: float) -> Found:
            # Zero has a sign, which nobody wants to see.
            return Found(
                rank=rank, score=score + 0.0, percentile=percentile_of_rank(rank, rows), **cells[number]
            )

        return Extremes(
            [found(1 + place, number, score) for place, (number, score) in enumerate(top)],
            [found(rows - place, number, -score) for place, (number, score) in enumerate(bottom)][::-1],
            rows,
        )

    def _as_many(self, row: npt.NDArray[np.float32], wanted: int) -> list[tuple[int, float]]:
        """As `nearest`, of one vector (1, d), out of as many lists as it takes to find so many."""
        probes = self.about.probes
        while True:
            (found,) = self.nearest(row, wanted, probes)
            if len(found) >= wanted or probes >= self.about.lists:
                return found
            probes = min(2 * probes, self.about.lists)

    def nearest(
        self, rows: npt.NDArray[np.float32], wanted: int, probes: int
    ) -> list[list[tuple[int, float]]]:
        """(number in the corpus, cosine) of the best that so many lists hold for each of some vectors (n, d).

        Best first, equal ones by number.
        """
        if wanted < 1:
            return [[] for _ in rows]
        parameters = self._faiss.SearchParametersIVF(nprobe=probes)
        # Vectors are of unit length but for rounding: products order them as cosines do but for near ties.
        asked = min(2 * wanted, self.about.rows)
        found = [part.search_and_reconstruct(rows, asked, params=parameters) for part in self._parts]
        _, numbers, vectors = (np.concatenate(side, axis=1) for side in zip(*found, strict=True))
        best = []
        for row, own, their in zip(rows, numbers, vectors, strict=True):
            there = own >= 0
            pairs = zip(own[there].tolist(), cosines(their[there], row[None]).tolist(), strict=True)
            best.append(sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:wanted])
        return best


def load_faiss() -> ModuleType:
    """FAISS, which is not installed by itself.

    Raises:
        UserError: it is not there.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "an index needs FAISS, which is not installed; run `pip install 'influcoder-ray[index]'`"
        ) from error
    found: ModuleType = faiss
    return found


def part_of(folder: Path, part: int) -> Path:
    """The file of a part of the index in a folder."""
    return folder / f"part-{part:05d}.faiss"


def write_about(folder: Path, about: About) -> None:
    """Say in a folder what its index is."""
    (folder / ABOUT).write_text(json.dumps(asdict(about), indent=2) + "\n")
