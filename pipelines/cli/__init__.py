"""The command line: one program, `agmm`.

Every command imports its work when it is called, so that `agmm --help` answers at once. Results go to stdout, all else
to stderr. Exit code 0; 2 for a user's mistake; 1 for a failure; 130 for Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence

import click

from pipelines import logs
from pipelines.cli import (
    benchmarks,
    benchmarks_distributed,
    checkpoints,
    cluster,
    data,
    doctor,
    export,
    jobs,
    models,
    runs,
    services,
    tune,
)
from pipelines.cli.output import say
from pipelines.names import refuse_unseen
from pipelines.secrets import redacted, refuse_addresses, refuse_credentials
from pipelines.tracking import signals

_LONGEST = 200  # characters of a path in a message


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="agmm")
def agmm() -> None:
    """Train, track and ship binary spiking neural networks: 1-bit weights, 0/1 spikes."""


for _command in (
    services.up,
    services.down,
    services.status,
    doctor.doctor,
    data.data,
    runs.recipes,
    runs.runs,
    runs.train,
    tune.tune,
    runs.evaluate,
    runs.convert,
    runs.landscape,
    checkpoints.checkpoints,
    models.models,
    export.export,
    export.predict,
    benchmarks.bench,
    jobs.submit,
    jobs.jobs,
    cluster.cluster,
):
    agmm.add_command(_command)
for _command in (benchmarks_distributed.bench_ray, benchmarks_distributed.bench_scale):
    benchmarks.bench.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP, and means it
            signal.signal(number, _interrupt)
    try:
        _check(sys.argv[1:] if arguments is None else arguments)
        code = agmm.main(args=arguments, prog_name="agmm", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("interrupted")
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left: nothing to say, or flush
        code = 1
    except Exception as error:  # noqa: BLE001, the last resort: what was not foreseen is raised again
        code = _expected(error)
    sys.exit(code if isinstance(code, int) else 0)


def _check(arguments: Sequence[str]) -> None:
    """Refuse what no command may be given: credentials in addresses, and text that is not what it looks like."""
    refuse_credentials(arguments, "The command line")
    refuse_addresses()
    if "submit" not in arguments:  # what follows is another program's, and may have lines
        refuse_unseen(arguments, "The command line")


def _interrupt(number: int, _: object) -> None:
    """SIGTERM ends a command as Ctrl-C does: what is half written goes, workers stop, a run is killed."""
    signals.note(number)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it puts in the background
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def _expected(error: Exception) -> int:
    """Print the text of an error that was foreseen and give its exit code; anything else is a bug and stays loud."""
    from cluster import errors as cluster_errors
    from pipelines import errors

    ours = (errors.UserError, errors.ServiceError, errors.Refused)
    if isinstance(error, (*ours, cluster_errors.UserError, cluster_errors.ServiceError)):
        logs.line(f"Error: {redacted(str(error))}", level="ERROR")
        return error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        say(f"Error: {error.strerror}: {str(error.filename)[:_LONGEST]}. Give another path.")
        return 2
    say(redacted("".join(traceback.format_exception(error))))
    return 1
