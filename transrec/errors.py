"""The one exception a user should ever see."""


class TransrecError(Exception):
    """A mistake the user can mend.

    The message names the file, line or option and its value, and says what to do. Scripts print it without a
    traceback and leave with exit status 2.
    """
