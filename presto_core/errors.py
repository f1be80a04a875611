"""The exception type that reaches the user as one message instead of a traceback."""


class UserError(Exception):
    """An error the user can fix: one message that names the thing, its value and the fix."""
