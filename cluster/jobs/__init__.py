"""Commands as jobs of a Ray head, through its job server: submit and follow, list, show the log, stop.

A job gets its environment from the head, which has what the services need. No secret and no variable is sent with it.
"""

from cluster.jobs.client import Head, connected, job_server
from cluster.jobs.records import Job, job_follow, job_logs, job_of, job_stop, jobs_list
from cluster.jobs.submission import submit

__all__ = [
    "Head",
    "Job",
    "connected",
    "job_follow",
    "job_logs",
    "job_of",
    "job_server",
    "job_stop",
    "jobs_list",
    "submit",
]
