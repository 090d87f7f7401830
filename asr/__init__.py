"""End-to-end CTC speech recognition that people can train, trust and understand."""

import os

# Threads that spin while they wait lose most of their speed as soon as another process (a data
# loader, another training) wants the same cores: measured 8 times slower. It must be set before torch
# loads its OpenMP runtime.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
