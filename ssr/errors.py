"""What the user can mend. A command prints the message as one line and ends with code 1."""

from __future__ import annotations


class UserError(Exception):
    """A fault that the user can mend; the message says what is wrong, where, and what to do."""


class SetupError(UserError):
    """A fault outside of the data: device, flags, checkpoints, files that cannot be written."""


class DataError(UserError, ValueError):
    """A fault in the user's data; the message names the file and line, or the item."""


class StoreError(UserError):
    """An index that cannot be used as asked; the message says which, why and what to do."""
