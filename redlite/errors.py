"""The one exception type for faults that a user can cause and mend."""


class Error(Exception):
    """A fault in the user's input: one line that says what, where and how to mend it.

    The command-line programs print the line and exit with code 2, without a traceback. Anything
    else that escapes from redlite is a bug and shows its traceback.
    """


class Incomplete(Error):
    """The work could not go on: a limit was reached, or an endpoint is out of reach. What is finished is kept.

    The command-line programs print the line and exit with code 1; the same command goes on later.
    """
