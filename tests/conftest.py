"""Settings for the whole suite, set before torch is imported."""

import os

# Several test processes share the cores: one thread each, and nothing reaches for a network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")
