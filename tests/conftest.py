"""What every test shares: one hypothesis profile, the same examples on every run; one thread.

``--hypothesis-profile=long`` draws thousands of new examples instead, where a test sets no number.

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
settings.register_profile(
    "long", settings.get_profile("gradsurgery"), derandomize=False, max_examples=2000
)
settings.load_profile("gradsurgery")
