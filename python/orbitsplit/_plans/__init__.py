"""From profile, network and workload to a plan; what a plan predicts, and how a run compares with it."""
