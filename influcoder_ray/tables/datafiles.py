"""A user's data files: found, recognised and identified without reading their rows."""

import glob as globbing
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.errors import UserError
from influcoder_ray.tables import json_lines
from influcoder_ray.tables.conditions import Where, groups_that_may_match
from influcoder_ray.tables.fields import may_hold, path_in, says_fields, type_at
from influcoder_ray.tables.fingerprint import file_identity
from influcoder_ray.tables.place import Place

PARQUET = ".parquet"
_THREADS = 16

Kind = Literal["text", "text or whole numbers", "lists"]
_TEXT = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    *(pa.types.is_binary, pa.types.is_large_binary),
)
_TESTS: dict[Kind, tuple[Callable[[pa.DataType], bool], ...]] = {
    "text": _TEXT,
    "text or whole numbers": (*_TEXT, pa.types.is_fixed_size_binary, pa.types.is_integer),
    "lists": (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
}


@dataclass(frozen=True)
class DataFile:
    """One Parquet or JSON Lines file of a corpus.

    `relative` names it inside the corpus; `identity` is a hash of its content; `types` are those of a
    Parquet file's columns. `row_groups` holds the rows of each Parquet row group, or of each block of
    lines; it is None for JSON Lines whose rows were not counted. `offsets` are the bytes of the text at
    which such blocks begin, and in the end that at which the last one ends. `size_bytes` is that of JSON
    Lines, compressed or not, and 0 for Parquet, whose footer tells more.

    Only rows for which `where` holds are ever read of it. `may_match` are the row groups whose statistics do
    not rule out that they have any; None for all.
    """

    place: Place
    relative: str
    identity: str
    row_groups: tuple[int, ...] | None
    columns: tuple[str, ...]
    types: tuple[pa.DataType, ...] = ()
    offsets: tuple[int, ...] = ()
    size_bytes: int = 0
    where: Where = ()
    may_match: tuple[int, ...] | None = None

    @property
    def is_parquet(self) -> bool:
        return self.relative.endswith(PARQUET)

    @property
    def schema(self) -> pa.Schema:
        """The columns of a Parquet file."""
        return pa.schema(list(zip(self.columns, self.types, strict=True)))

    def has(self, name: str) -> bool:
        """Whether there is such a column, or field within one; of JSON Lines, whether there may be."""
        if self.is_parquet:
            return bool(path_in(self.schema, name))
        return not self.columns or may_hold(self.columns, name)

    @property
    def says_columns(self) -> str:
        """The columns for a person."""
        return says_fields(self.schema) if self.is_parquet else ", ".join(self.columns)

    @property
    def groups_to_read(self) -> dict[int, int]:
        """The rows of each row group, or block of lines, that has to be read for the rows that are wanted."""
        groups = self.row_groups or ()
        kept = range(len(groups)) if self.may_match is None else self.may_match
        return {group: groups[group] for group in kept}


def find_data_files(
    uri: str,
    *,
    setting: str,
    where: Where = (),
    identify: bool = True,
    only: Collection[str] | None = None,
) -> list[DataFile]:
    """The data files at a file, a folder or a glob, in order of their names.

    Args:
        setting: the setting that holds `uri`, for the error's first words. That of the conditions is called
            `where` and stands beside it.
        where: conditions that rows must meet to be read, whoever reads them.
        identify: whether files are read to tell one content from another. Without it footers are all that
            is read: identities are empty, and so are the columns of JSON Lines.
        only: names inside the corpus; files of other names are not looked into.

    Raises:
        UserError: nothing is there, nothing there is Parquet or JSON Lines, a file cannot be read, or it
            lacks a column of a condition or has another kind of values there.
    """
    place = Place(uri)
    if place.has_wildcards and not place.exists():
        root = _folder_before_wildcards(place.path)
        paths = [(Place(_with_scheme(uri, path)), path.removeprefix(root)) for path in place.glob()]
    elif place.is_folder():
        paths = [
            (place / e.relative, e.relative)
            for e in place.files()
            if not any(part.startswith("_") for part in e.relative.split("/"))
        ]
    elif place.exists():
        paths = [(place, place.name)]
    else:
        raise UserError(f"{setting}: {uri} does not exist; give a file, a folder or a glob")
    known = [(found, name) for found, name in paths if name.endswith((PARQUET, *json_lines.SUFFIXES))]
    if not known:
        raise UserError(
            f"{setting}: {uri} holds no data file; give Parquet ({PARQUET}) or "
            f"JSON Lines ({', '.join(json_lines.SUFFIXES)})"
        )
    known = [(found, name) for found, name in known if only is None or name in only]

    def inspect(item: tuple[Place, str, str]) -> DataFile:
        return _inspect(*item, setting=setting, where=where, identify=identify)

    # The hub's hashes are those of the listing that was made above, in this thread.
    listed = [(found, name, found.content_id() if identify else "") for found, name in known]
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(inspect, listed))


def require_columns(files: Sequence[DataFile], columns: Sequence[str], *, setting: str) -> None:
    """Refuse files that lack a column.

    JSON Lines name their keys line by line, so their columns are those of the first lines.

    Raises:
        UserError: naming the file, the column and the columns that are there.
    """
    for file in files:
        missing = next((name for name in columns if not file.has(name)), None)
        if missing is not None:
            raise UserError(f"{setting}: {file.place} has no column {missing!r}; it has {file.says_columns}")


def require_types(files: Sequence[DataFile], columns: Sequence[tuple[str, Kind]], *, setting: str) -> None:
    """Refuse Parquet files in which a column is of a type that holds something else than it should.

    Raises:
        UserError: naming the file, the column and its type.
    """
    for file in files:
        for name, kind in columns if file.is_parquet else ():
            path = path_in(file.schema, name)
            own = type_at(file.schema, path) if path else pa.null()
            value = own.value_type if pa.types.is_dictionary(own) else own
            if not (pa.types.is_null(value) or any(test(value) for test in _TESTS[kind])):
                raise UserError(
                    f"{setting}: {name!r} of {file.place} is {own}, not {kind}; name a column of {kind}"
                )


def _inspect(
    place: Place, relative: str, identity: str, *, setting: str, where: Where, identify: bool
) -> DataFile:
    may_match = None
    try:
        if identify and not identity:
            identity = file_identity(place)
        if not relative.endswith(PARQUET):
            columns: tuple[str, ...] = ()
            if identify:
                columns, kinds = json_lines.first_keys(place, dict(where))
                _require_matchable_lines(place, columns, kinds, where, setting)
            size = place.size_bytes()
            return DataFile(place, relative, identity, None, columns, size_bytes=size, where=where)
        # `footer.schema` would refer back to the footer, half a megabyte of a large file, and keep it.
        with place.open() as stream, pq.ParquetFile(stream) as parquet:
            footer = parquet.metadata
            rows = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
            schema = parquet.schema_arrow
            if where:
                _require_matchable(place, schema, where, setting)
                may_match = groups_that_may_match(where, stream)
    except (pa.ArrowException, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        kind = "Parquet" if relative.endswith(PARQUET) else "JSON Lines"
        raise UserError(
            f"{setting}: {place} is no readable {kind} file ({reason}); write it anew or leave it out"
        ) from error
    names, types = tuple(schema.names), tuple(schema.types)
    return DataFile(place, relative, identity, rows, names, types, where=where, may_match=may_match)


def _require_matchable(place: Place, schema: pa.Schema, where: Where, setting: str) -> None:
    """Refuse a Parquet file without a condition's column, or with values that it cannot compare."""
    for name, condition in where:
        own = _setting_of(name, setting)
        path = path_in(schema, name)
        if not path:
            raise UserError(f"{own}: {place} has no column {name!r}; it has {says_fields(schema)}")
        kind = type_at(schema, path)
        value = condition.unfit_value(kind)
        if value is not None:
            raise UserError(
                f"{own}: {value!r} cannot be compared with {name!r} of {place}, which is {kind}; give values "
                "of that type, text in quotes"
            )


def _require_matchable_lines(
    place: Place,
    columns: Sequence[str],
    kinds: Mapping[str, Collection[str]],
    where: Where,
    setting: str,
) -> None:
    """Refuse lines of JSON of which the first all lack a condition's key, or have values of other kinds."""
    for name, condition in where if columns else ():
        own = _setting_of(name, setting)
        if name not in kinds:
            raise UserError(f"{own}: {place} has no column {name!r}; it has {', '.join(columns)}")
        there = sorted(kind for kind in kinds[name] if kind != "null")
        if there and condition.kind not in there:
            raise UserError(
                f"{own}: compares with {condition.kind}, and {name!r} of {place} holds "
                f"{' and '.join(there)}; give values of its kind, text in quotes"
            )


def _setting_of(column: str, setting: str) -> str:
    return f"{setting.rpartition('.')[0]}.where.{column}"


def _folder_before_wildcards(path: str) -> str:
    """The folder below which a glob matches: names relative to it keep files of one name apart."""
    parts = path.split("/")
    fixed = next(i for i, part in enumerate(parts) if globbing.has_magic(part))
    return "".join(f"{part}/" for part in parts[:fixed])


def _with_scheme(uri: str, path: str) -> str:
    return f"{uri.split('://', 1)[0]}://{path}" if "://" in uri else path
