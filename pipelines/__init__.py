"""Floor 6: the command line, one short file a verb. Every verb is also a module: `python -m pipelines.pretrain RECIPE`."""

import os

# Before torch is loaded, which reads it then. Threads that wait for work would else spin on the cores that data workers need: on
# two cores, two workers and a small video model, 83 samples/s became 111. Results do not depend on it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
