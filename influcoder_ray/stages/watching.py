"""The report of an output folder while its run goes on: made in memory, nothing is written."""

import time
from collections.abc import Sequence

from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.report.progress import progress_page
from influcoder_ray.report.render import render_page
from influcoder_ray.tables.progress import Progress, ProgressReader


class WatchedRun:
    """The page of a run: how far it is, and the report once every stage before it is done.

    Args:
        settings: the run's.
        stages: the stages that the report needs, in order.
    """

    def __init__(self, settings: PipelineSettings, stages: Sequence[str]) -> None:
        self._settings = settings
        self._reader = ProgressReader(settings.root, stages)
        self._progress: Progress | None = None
        self._changed = time.monotonic()
        self._trouble = ""

    def key(self) -> str:
        """What the page depends on: the folder, and the time too as long as there is no report."""
        progress = self._look()
        settled = progress.finished and not self._trouble
        return progress.key if settled else f"{progress.key} {time.monotonic()}"

    def html(self) -> str:
        """The page as the folder was when `key` was asked for; what a user can mend stands on it."""
        progress = self._progress or self._look()
        self._trouble = ""
        if not progress.finished:
            return self._so_far(progress)
        from influcoder_ray.stages.work import page

        try:
            return page.html(self._settings)
        except (UserError, OSError) as error:
            # A stage that begins anew takes its tables away, perhaps under this very reading.
            now = self._look()
            if now.key == progress.key:
                if not isinstance(error, UserError):
                    raise
                self._trouble = str(error)
            return self._so_far(now)

    def _look(self) -> Progress:
        found = self._reader.look()
        if self._progress is None or found.key != self._progress.key:
            self._changed = time.monotonic()
        self._progress = found
        return found

    def _so_far(self, progress: Progress) -> str:
        page = progress_page(
            self._settings.report.title,
            str(self._settings.root),
            progress.stages,
            unchanged_seconds=time.monotonic() - self._changed,
            trouble=self._trouble,
        )
        return render_page(page)
