"""Import this to compute with one thread from here on; see `tests.programs`."""

import torch

torch.set_num_threads(1)
