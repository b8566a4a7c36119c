"""What every test shares: one hypothesis profile, the same examples on every run; one thread.

``pytest --hypothesis-profile=long`` draws twenty times as many examples, and others each time.

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
    "long",
    settings.get_profile("gradsurgery"),
    derandomize=False,
    max_examples=20 * settings.get_profile("gradsurgery").max_examples,
    print_blob=True,  # what repeats a failure
)
settings.load_profile("gradsurgery")
