"""The library of the course: small modules, one noun each, to be read after the lecture."""

import os

__version__ = "0.1.0"

# OpenMP's threads wait for each other by spinning, for 15 ms (GNU) or 200 ms (LLVM, Intel) before
# they sleep. Where another program is on one of the cores, that wait is most of the time. So they
# spin briefly, which costs nothing where the cores are free. The OpenMP library reads this when it
# is loaded, with torch: notebooks import this package first. What a user has set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
