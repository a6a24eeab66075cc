"""The few errors that reach a user, named for what the user can do about them."""

from __future__ import annotations


class RequestError(Exception):
    """The request was wrong and nothing was changed (exit code 2).

    The message is one line: what is wrong, where, and how to mend it.
    """


class WorkFailed(Exception):
    """The work itself failed; everything committed stays committed (exit code 1)."""


class Damage(WorkFailed):
    """Stored data does not agree with its commit (exit code 1); ``verify --repair`` mends it."""


class Stopped(Exception):
    """A signal or a time limit ended the run; the same command resumes it (exit code 75)."""
