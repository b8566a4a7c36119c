"""What every test shares: one hypothesis profile, the same examples on every run; one thread.

Tests are many and their tensors tiny: threads that wait for each other made the suite three times
slower on two busy cores. Whoever has cores to spare runs it with ``pytest -n``.
"""

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

settings.register_profile(
    "gradsurgery",
    deadline=None,  # nothing here is a timing assertion
    derandomize=True,
    database=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("gradsurgery")
