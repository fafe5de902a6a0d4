"""A packed network as one file of C99 that depends on nothing: for processors that run no Python."""

from agmm.packed.c.compiled import Compiled as Compiled
from agmm.packed.c.compiled import find_compiler as find_compiler
from agmm.packed.c.source import CSource as CSource
from agmm.packed.c.source import write_c as write_c
