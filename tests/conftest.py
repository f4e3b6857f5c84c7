"""What all tests share: one thread a process, since several processes share the cores; and kernels
that Triton interprets where there is no GPU."""

import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when kernels are defined
