"""A data set: its files, what their columns hold, and which of their rows count."""

from collections.abc import Collection, Mapping

from pydantic import Field

from influcoder_ray.errors import UserError
from influcoder_ray.examples.columns import ColumnSpec
from influcoder_ray.spec import Spec
from influcoder_ray.tables.conditions import Condition, Where
from influcoder_ray.tables.datafiles import DataFile, find_data_files


class DataSpec(Spec):
    """Data files, what their columns hold, and which of their rows count."""

    path: str = Field(
        description="A file, a folder or a glob of Parquet or JSON Lines; local, s3:// or hf://."
    )
    columns: ColumnSpec = Field(description="Which columns hold what.")
    where: Mapping[str, Condition] = Field(
        default={},
        description="Conditions by column, such as language: en or score: {at_least: 0.8}, or by a field "
        "within one (meta.source: C4); a row counts where all of them hold. The others are in no stage, and "
        "keep their numbers.",
    )

    @property
    def conditions(self) -> Where:
        """The conditions, in order of their columns."""
        return tuple(sorted(self.where.items()))

    def files(
        self, setting: str, *, identify: bool = True, only: Collection[str] | None = None
    ) -> list[DataFile]:
        """The files, of which no more than the rows that count is ever read.

        Args:
            setting: the setting that holds this data set, for the error's first words.
            identify, only: as for `find_data_files`.

        Raises:
            UserError: they are not there, cannot be read, lack a column that a condition is on, or have
                other values there; or their footers tell that no row counts.
        """
        files = find_data_files(
            self.path, setting=f"{setting}.path", where=self.conditions, identify=identify, only=only
        )
        is_empty = all(file.is_parquet and not any(file.groups_to_read.values()) for file in files)
        if self.where and only is None and is_empty and any(any(file.row_groups or ()) for file in files):
            raise UserError(
                f"{setting}.where: no row of {self.path} can match, as its files' statistics say "
                f"({self.says_where}); loosen the conditions"
            )
        return files

    @property
    def says_where(self) -> str:
        """The conditions in a line."""
        return "; ".join(f"{name} {condition}" for name, condition in self.conditions)
