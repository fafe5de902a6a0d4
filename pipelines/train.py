"""`python -m pipelines.train RECIPE`, what a Ray job runs: the same as `agmm train RECIPE`."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
