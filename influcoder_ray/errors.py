"""The two ways in which a command ends badly, each with its exit status."""


class UserError(Exception):
    """A setting or an input that cannot be used, found before any work: one line, exit status 2.

    The message names the thing, what is wrong with it and what would be right.
    """

    exit_status = 2


class RunFailed(Exception):
    """A run that was sound when it started and did not finish: exit status 1."""

    exit_status = 1
