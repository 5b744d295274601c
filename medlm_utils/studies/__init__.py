"""Studies: what takes many trainings, peers or real data, run once and recorded."""
