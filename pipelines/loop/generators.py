"""The global random generators of a process, as a pure function of (seed, step, rank)."""

import random

import numpy as np
import torch


def seed_generators(seed: int, step: int, rank: int) -> None:
    """Set Python's, NumPy's and torch's generators, on all devices, for an optimiser step of a rank.

    Done at every step, so that no generator has a state to store: whatever draws from one, a dropout say, draws the
    same after a resume, and on another number of workers draws anew.
    """
    words = np.random.SeedSequence([seed, step, rank]).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))
