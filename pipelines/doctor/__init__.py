"""What is looked at before a run takes an accelerator: checks that are plain functions, each one line of an answer.

`check` has the one shape of them, and how one is run; `recipe`, `services` and `room` have what a run needs here,
`memory` and `hours` what it will take, as a process of its own (`trial`) measures it. What needs `cluster` is joined to
them by the command line alone.
"""
