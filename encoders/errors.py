"""The errors that a user can cause, and what a user should know while the work goes on, each told in one plain sentence."""

from __future__ import annotations


class UserError(ValueError):
    """A value the user gave cannot be used; the message says what is wrong and what to do."""


class UserTypeError(UserError, TypeError):
    """A value of the wrong kind: a string for a number, a model of another class."""


class UserNote(UserWarning):
    """A warning of this project: the work goes on, otherwise than the user may have meant."""
