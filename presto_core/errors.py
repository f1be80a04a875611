"""The one exception family that reaches a user as a sentence instead of a traceback."""


class UserError(Exception):
    """Something the user can mend: the message names the thing, its value and the mend, in one sentence."""
