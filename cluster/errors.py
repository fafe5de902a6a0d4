"""The two ways in which a command of this floor fails, each with the exit code that the command line ends with."""


class UserError(ValueError):
    """A user's mistake. The message says what is wrong, what came, what is allowed and what to do."""

    exit_code = 2


class ServiceError(RuntimeError):
    """A service did not start, did not answer or failed, through no mistake of the user."""

    exit_code = 1
