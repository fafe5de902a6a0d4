"""`python -m pipelines.cli` is `agmm`."""

from pipelines.cli import main

main()
