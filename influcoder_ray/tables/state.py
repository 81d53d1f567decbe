"""What a stage has done: its fingerprint, a manifest for each unit, and its closing totals.

Everything lies under `<output>/_state/<stage>/`, so the tables themselves are folders of Parquet
and nothing else. A reader reads the files that manifests name, and no others. A stage that is finished
has its manifests in one file too, so that reading them takes as long for many units as for few. While it
runs, the driver notes down those that have come, some thousand in a file, so that the next driver need not
read each by itself either. Both are copies: a unit is done when its own manifest is written.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from influcoder_ray.ahead import in_order
from influcoder_ray.errors import RunFailed, UserError
from influcoder_ray.tables import schemas
from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.fingerprint import Fingerprint, digest_of
from influcoder_ray.tables.manifests import CommittedFile, Manifest, pack, unpack
from influcoder_ray.tables.place import Place

__all__ = ["CommittedFile", "Manifest", "Output", "StageState", "parquet_bytes", "quarantine_table"]

_THREADS = 16
_TOTALS, _PACKED, _NOTES = "totals.json", "manifests.jsonl.zst", "notes"
# Manifests that are read as quickly one by one as they are noted down.
_FEW = 256
_QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Output:
    """What a stage makes of a unit: tables by name, the rows set aside, and counters.

    `rows_out` counts the rows that were used: with those set aside they are all that came in.
    `rows_per_group` is the size of the row groups in which the tables are written.
    """

    tables: Mapping[str, pa.Table]
    rows_in: int
    rows_out: int
    quarantine: pa.Table | None = None
    counters: Mapping[str, float] = field(default_factory=dict)
    rows_per_group: int = 4096


class StageState:
    """The record of one stage below an output folder.

    Args:
        root: the output folder.
        stage: the stage's name, and its folder's below `_state/`.
        tables: the tables that the stage writes, as paths below `root`; the first is its main one.
    """

    def __init__(self, root: Place, stage: str, tables: Sequence[str]) -> None:
        self.root = root
        self.stage = stage
        self.tables = tuple(tables)
        self._folder = root / "_state" / stage

    def fingerprint(self) -> Fingerprint | None:
        """The fingerprint that the folder holds, if it holds one."""
        held = (self._folder / "fingerprint.json").read_if_there()
        return None if held is None else Fingerprint.from_json(held)

    def finished(self) -> Fingerprint:
        """The fingerprint of the finished stage.

        Raises:
            UserError: the stage has not been run to its end, or a file of its tables is gone.
        """
        found = self.fingerprint()
        if found is None or not self.is_complete():
            raise UserError(f"{self.root / self.tables[0]}: not there yet; run the {self.stage} stage first")
        return found

    def refuse_other(self, fingerprint: Fingerprint, renewed_by: Collection[str] = ()) -> None:
        """Refuse a folder that holds another fingerprint's files; writes nothing.

        Args:
            renewed_by: dotted fields that may differ, since the stage then makes its files anew.

        Raises:
            UserError: naming the fields that differ.
        """
        held = self.fingerprint()
        if held is None or held.digest == fingerprint.digest or not self._table_sizes():
            return
        differences = fingerprint.differences(held, apart_from=renewed_by)
        if not differences:
            return
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise UserError(
            f"{self.root / self.tables[0]} holds another run: {'; '.join(differences[:3])}{more}; "
            f"use another output folder or delete {', '.join(str(self.root / t) for t in self.tables)}"
        )

    def begin(self, fingerprint: Fingerprint) -> None:
        """Record the fingerprint before the first unit is committed; drop what an older one left.

        A finished stage is open again: its units may be done anew, and the closing record would not know.
        """
        held = self.fingerprint()
        if held is not None and held.digest == fingerprint.digest:
            (self._folder / _TOTALS).remove()
            return
        for path in self._quarantine_sizes():
            (self.root / path).remove()
        self._folder.remove()
        (self._folder / "fingerprint.json").write_whole(fingerprint.to_json())

    def renew(self, fingerprint: Fingerprint) -> None:
        """Begin with a fingerprint; files of another one are removed, so that no reader meets both."""
        held = self.fingerprint()
        if held is None or held.digest != fingerprint.digest:
            for table in self.tables:
                (self.root / table).remove()
        self.begin(fingerprint)

    def manifests(self) -> dict[str, Manifest]:
        """The manifests whose files are all there in the size that they vouch for, by unit."""
        return self.whole(self._written(self._closing()))

    def take_up(self, unit_ids: Collection[str]) -> dict[str, Manifest]:
        """As `manifests`, for a driver that is about to do those of these units which are not among them.

        What notes say of such a unit would outlast what is made of it now, so they are removed; those
        manifests that had to be read one by one are noted down, if they are many.
        """
        noted = self._noted()
        own = self._read_units(apart_from={m.unit_id for note in noted.values() for m in note})
        found = self.whole(chain(own, *noted.values()))
        anew = own
        for name, note in noted.items():
            if any(m.unit_id in unit_ids and m.unit_id not in found for m in note):
                (self._folder / _NOTES / name).remove()
                anew = anew + note
        self.note([manifest for manifest in anew if manifest.unit_id in found])
        return found

    def note(self, manifests: Sequence[Manifest]) -> None:
        """Write manifests of committed units down together, for `manifests` to read; few are left alone."""
        if len(manifests) >= _FEW:
            name = digest_of(sorted(manifest.unit_id for manifest in manifests))[:16]
            (self._folder / _NOTES / f"{name}.jsonl.zst").write_whole(pack(manifests))

    def whole(self, manifests: Iterable[Manifest]) -> dict[str, Manifest]:
        """Those of which every file is there in the size that they vouch for, by unit.

        Takes a listing of each table, and reads nothing.
        """
        sizes = self._table_sizes()
        held: dict[str, Manifest] = {}
        knows_quarantine = False
        for manifest in manifests:
            if not knows_quarantine and any(file.table == _QUARANTINE for file in manifest.files):
                sizes |= self._quarantine_sizes()
                knows_quarantine = True
            if all(sizes.get(file.path) == file.size_bytes for file in manifest.files):
                held[manifest.unit_id] = manifest
        return held

    def commit(self, unit_id: str, output: Output, seconds: float) -> Manifest:
        """Write a unit's tables whole, then the manifest that vouches for them.

        Raises:
            RunFailed: rows are missing or too many: rows in differ from rows out and quarantined.
        """
        quarantined = output.quarantine.num_rows if output.quarantine is not None else 0
        if output.rows_in != output.rows_out + quarantined:
            raise RunFailed(
                f"{self.stage}: unit {unit_id} took {output.rows_in} rows in and accounts for "
                f"{output.rows_out} + {quarantined} quarantined"
            )
        held = self.fingerprint()
        note = {b"fingerprint": held.to_json() if held else b""}
        files = [
            self._write(name, f"{name}/{unit_id}.parquet", table, note, output.rows_per_group)
            for name, table in output.tables.items()
        ]
        if output.quarantine is not None and quarantined:
            path = f"{_QUARANTINE}/{self.stage}-{unit_id}.parquet"
            files.append(self._write(_QUARANTINE, path, output.quarantine, note, output.rows_per_group))
        return self._vouch(
            Manifest(
                unit_id,
                output.rows_in,
                output.rows_out,
                quarantined,
                seconds,
                tuple(files),
                dict(output.counters),
            )
        )

    def commit_files(
        self, unit_id: str, files: Mapping[str, bytes], *, seconds: float, counters: Mapping[str, float]
    ) -> Manifest:
        """Write files that are no tables (a report, an encoder's weights), by path, then vouch for them."""
        committed = []
        for path, data in files.items():
            (self.root / path).write_whole(data)
            table = next(t for t in self.tables if path == t or path.startswith(f"{t}/"))
            committed.append(CommittedFile(table, path, 0, len(data), hashlib.sha256(data).hexdigest()))
        return self._vouch(Manifest(unit_id, 0, 0, 0, seconds, tuple(committed), dict(counters)))

    def finish(self, manifests: Mapping[str, Manifest], totals: Mapping[str, float]) -> None:
        """Record that every unit is done: their manifests in one file, then the totals that vouch for it.

        What killed workers had half written is removed.
        """
        for place in (self._folder, *(self.root / table for table in self.tables)):
            place.sweep()
        data = pack(manifests.values())
        (self._folder / _PACKED).write_whole(data)
        record = {
            "units": digest_of(sorted(manifests)),
            "totals": dict(totals),
            "manifests": hashlib.sha256(data).hexdigest(),
        }
        (self._folder / _TOTALS).write_whole(json.dumps(record, sort_keys=True).encode())

    def totals(self) -> dict[str, float] | None:
        """The totals of the finished stage, or None."""
        closing = self._closing()
        return None if closing is None else dict(closing["totals"])

    def is_done(self, fingerprint: Fingerprint, unit_ids: Sequence[str]) -> bool:
        """Whether the stage is finished with this fingerprint, these units, and every file in place."""
        held, closing = self.fingerprint(), self._closing()
        if held is None or held.digest != fingerprint.digest or closing is None:
            return False
        if closing["units"] != digest_of(sorted(unit_ids)):
            return False
        return set(unit_ids) <= self.whole(self._written(closing)).keys()

    def is_complete(self) -> bool:
        """Whether the stage was finished, with whatever settings, and every file is still in place."""
        closing = self._closing()
        if closing is None:
            return False
        return bool(closing["units"] == digest_of(sorted(self.whole(self._written(closing)))))

    def files(self, table: str) -> list[CommittedFile]:
        """The files of a table that manifests vouch for, in order of unit id."""
        manifests = self.manifests()
        return [
            file for unit_id in sorted(manifests) for file in manifests[unit_id].files if file.table == table
        ]

    def data_files(self, table: str) -> list[DataFile]:
        """The same files as the input of a later stage; their identity is their checksum.

        One footer is read, for the columns that all files of a table share, and those of files whose row
        groups no manifest tells.
        """
        files = self.files(table)
        if not files:
            return []
        columns = tuple(self._footer(files[0]).schema.to_arrow_schema().names)

        def described(file: CommittedFile) -> DataFile:
            groups = file.row_groups
            if groups is None:
                footer = self._footer(file)
                groups = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
            return DataFile(self.root / file.path, file.path, file.sha256[:32], groups, columns)

        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(described, files))

    def read(
        self,
        table: str,
        schema: pa.Schema,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
    ) -> pa.Table:
        """A table in memory, or the rows of it for which `where` holds, taken file by file."""
        parts = list(self.read_each(table, schema, columns, where))
        return pa.concat_tables(parts) if parts else _fields(schema, columns).empty_table()

    def read_each(
        self,
        table: str,
        schema: pa.Schema,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
    ) -> Iterator[pa.Table]:
        """The same rows a file at a time, for tables that are too large to be held."""
        fields = _fields(schema, columns)
        for file in self.files(table):
            with (self.root / file.path).open() as stream:
                rows = pq.ParquetFile(stream).read(columns=list(fields.names))
            yield (rows if where is None else rows.filter(where)).cast(fields)

    def _footer(self, file: CommittedFile) -> pq.FileMetaData:
        with (self.root / file.path).open() as stream:
            return pq.ParquetFile(stream).metadata

    def _closing(self) -> dict[str, Any] | None:
        """The closing record of the finished stage, or None."""
        held = (self._folder / _TOTALS).read_if_there()
        return None if held is None else dict(json.loads(held))

    def _written(self, closing: Mapping[str, Any] | None) -> Iterator[Manifest]:
        """Every manifest that was written: out of one file, where a closing record vouches for that.

        The file is a copy. Where it is gone, damaged, or of a version that wrote none, the manifests
        themselves are read, those that are noted down out of the notes.
        """
        if closing is not None and "manifests" in closing:
            data = (self._folder / _PACKED).read_if_there()
            if data is not None and hashlib.sha256(data).hexdigest() == closing["manifests"]:
                yield from unpack(data)
                return
        noted = self._noted()
        yield from self._read_units(apart_from={m.unit_id for note in noted.values() for m in note})
        yield from chain.from_iterable(noted.values())

    def _noted(self) -> dict[str, list[Manifest]]:
        """What notes hold, by their names; a note that cannot be read is none."""
        folder = self._folder / _NOTES
        noted: dict[str, list[Manifest]] = {}

        def read(name: str) -> tuple[str, bytes | None]:
            return name, (folder / name).read_if_there()

        names = [entry.relative for entry in folder.files()]
        # Threads wait for the store; unpacking keeps the interpreter to itself, and gains nothing from them.
        for name, data in in_order(read, names, threads=_THREADS, ahead=_THREADS):
            try:
                noted[name] = [] if data is None else list(unpack(data))
            except (ValueError, OSError):
                noted[name] = []
        return noted

    def _read_units(self, apart_from: Collection[str]) -> list[Manifest]:
        """Every unit's own manifest, but for those of units that are named."""
        units = self._folder / "units"
        names = [e.relative for e in units.files() if e.relative.removesuffix(".json") not in apart_from]
        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(lambda name: Manifest.from_json((units / name).read_bytes()), names))

    def _vouch(self, manifest: Manifest) -> Manifest:
        (self._folder / "units" / f"{manifest.unit_id}.json").write_whole(manifest.to_json())
        return manifest

    def _write(
        self, table: str, path: str, rows: pa.Table, note: Mapping[bytes, bytes], rows_per_group: int
    ) -> CommittedFile:
        data = parquet_bytes(
            rows.replace_schema_metadata({**(rows.schema.metadata or {}), **note}), rows_per_group
        )
        (self.root / path).write_whole(data)
        digest = hashlib.sha256(data).hexdigest()
        return CommittedFile(table, path, rows.num_rows, len(data), digest, rows_per_group)

    def _table_sizes(self) -> dict[str, int]:
        """The sizes of the files that this stage has written, by path below the output folder.

        Each table is listed once, which takes a request for a thousand names on S3.
        """
        sizes = {}
        for table in self.tables:
            place = self.root / table
            found = place.files()
            sizes.update({f"{table}/{entry.relative}": entry.size_bytes for entry in found})
            if not found and place.exists() and not place.is_folder():
                sizes[table] = place.size_bytes()
        return sizes

    def _quarantine_sizes(self) -> dict[str, int]:
        return {
            f"{_QUARANTINE}/{entry.relative}": entry.size_bytes
            for entry in (self.root / _QUARANTINE).files()
            if entry.relative.startswith(f"{self.stage}-")
        }


def parquet_bytes(table: pa.Table, rows_per_group: int = 4096) -> bytes:
    """A table as the bytes of a Parquet file: the same table gives the same bytes.

    Text is compressed; sketches and vectors, beside which a table's text is little, would gain 8%.
    """
    wide = any(
        pa.types.is_fixed_size_binary(f.type) or pa.types.is_fixed_size_list(f.type) for f in table.schema
    )
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=rows_per_group,
        compression="none" if wide else "zstd",
        use_dictionary=not wide,
    )
    return bytes(sink.getvalue())


def quarantine_table(stage: str, rows: Sequence[tuple[str, str, str]]) -> pa.Table:
    """Rows set aside, each (example_id, source, reason)."""
    return pa.table(
        {
            "stage": pa.array([stage] * len(rows), pa.string()),
            "example_id": pa.array([row[0] for row in rows], pa.string()),
            "source": pa.array([row[1] for row in rows], pa.string()),
            "reason": pa.array([row[2] for row in rows], pa.string()),
        },
        schema=schemas.QUARANTINE,
    )


def _fields(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    return schema if columns is None else pa.schema([schema.field(name) for name in columns])
