"""Studies: what takes many trainings, peers or real data, run once and recorded.

This package is imported before any of its modules loads torch, whose threads read only
then how long they are to look about for work before they sleep.
"""

from medlm_utils import runtime

runtime.stop_spinning()
