"""The two ways a command ends badly. The command line prints their text without a traceback."""


class UserError(ValueError):
    """A user's mistake: the message says what is wrong, what came, what is allowed and what to do."""

    exit_code = 2


class ServiceError(RuntimeError):
    """Something outside failed: a service, a disk, a worker. The message says what to look at."""

    exit_code = 1


class Stopped(RuntimeError):
    """The loop was asked to save a checkpoint and stop, and did. No failure; whoever asked ends the process."""
