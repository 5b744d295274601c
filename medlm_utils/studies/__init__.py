"""Studies: what takes many trainings, peers or real data, run once and recorded.

This package is imported before any of its modules loads torch, whose threads read only
then how long they are to look about for work before they sleep.
"""

import os

from medlm_utils import runtime

os.environ.setdefault("GOMP_SPINCOUNT", runtime.SPIN)
