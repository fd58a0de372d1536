"""The library of the course: small modules, one noun each, to be read after the lecture."""

import os

__version__ = "0.1.0"

# OpenMP's threads wait for each other by spinning, for about 15 ms (GNU) or 200 ms (LLVM, Intel)
# before they sleep. Where another program has one of the cores, most of the time goes there. So
# they spin briefly; never to spin would double the time of a small network on free cores. OpenMP
# reads this when it is loaded, with torch, so notebooks import this package first. What a user has
# set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("KMP_BLOCKTIME", "1")
