"""The exception types for faults that a user can cause and mend."""


class Error(Exception):
    """A fault in the user's input: one line that says what, where and how to mend it.

    setting  the name of the setting that is wrong, or that mends the fault, such as "output_dir"; "" for none

    The command-line programs print the line, with the option that stands for the setting, and exit with code
    2. Anything else that escapes from redlite is a bug and shows its traceback.
    """

    def __init__(self, message: str, setting: str = ""):
        super().__init__(message)
        self.setting = setting


class Incomplete(Error):
    """The work could not go on: a limit is reached, or an endpoint out of reach. What is finished is kept.

    The command-line programs print the line and exit with code 1; the same command goes on later.
    """
