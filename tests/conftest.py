"""What the whole suite shares: fixtures, and one thread for torch, because tiny tensors only wait for the others."""

import torch

from tests.distributed.processes import four_processes as four_processes
from tests.distributed.processes import two_processes as two_processes

torch.set_num_threads(1)
