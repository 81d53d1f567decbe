"""The ways in which a command ends before its work is done, each with its exit status."""


class UserError(Exception):
    """A setting or an input that cannot be used, found before any work: one line, exit status 2.

    The message names the thing, what is wrong with it and what would be right.
    """

    exit_status = 2


class RunFailed(Exception):
    """A run that was sound when it started and did not finish: exit status 1."""

    exit_status = 1


class NoRoom(RunFailed):
    """A disk, or what one person may use of it, is full: trying again fills nothing but time."""


class Stopped(BaseException):
    """Somebody asked the process to end: Ctrl-C, `ray job stop`, a machine that is going away.

    Neither an `Exception`, which a caller might take for a failed attempt, nor a `KeyboardInterrupt`, which
    the command line's library would answer in its own words.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_status = 128 + number
