"""The ways a command ends badly, and those of a run. The command line prints their text without a traceback."""


class UserError(ValueError):
    """A user's mistake: the message says what is wrong, what came, what is allowed and what to do."""

    exit_code = 2


class NothingToResume(UserError):
    """No run has the name that one was asked for to go on with."""


class ServiceError(RuntimeError):
    """Something outside failed: a service, a disk, a worker. The message says what to look at."""

    exit_code = 1


class Refused(RuntimeError):
    """A model does not pass: its files, its data or its figures are not what they must be. The message says which."""

    exit_code = 1


class NotThere(ServiceError):
    """A store answers, and does not have what was asked for."""


class TrainingFailed(ServiceError):
    """The workers cannot go on. `cause` is what one of them said, its error's name first."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"Training failed. {cause}")
        self.cause = cause


class Fenced(ServiceError):
    """This attempt was overtaken by a newer one of the same run, which owns the run's state from now on.

    own: the newer one belongs to the same driver, so it is only this worker that ends.
    """

    def __init__(self, message: str, *, own: bool = False) -> None:
        super().__init__(message)
        self.own = own


def failure_of(cause: str) -> ServiceError:
    """What the driver raises for what a worker said, its error's name first."""
    name, _, text = cause.partition(": ")
    return Fenced(text) if name == Fenced.__name__ else TrainingFailed(cause)


class Stopped(RuntimeError):
    """The loop was asked to save a checkpoint and stop, and did. No failure; whoever asked ends the process."""
