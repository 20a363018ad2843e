"""Under pytest everything runs on one thread, set before any library loads and reads it.

The scripts set it for themselves (`measure.settle`).
"""

import os

for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)
for name in ("OMP", "MKL", "OPENBLAS", "RAYON", "RTEN", "LOWBIT"):
    os.environ[f"{name}_NUM_THREADS"] = "1"
