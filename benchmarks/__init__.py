"""Benchmarks: what surgery costs, beside plain training, its floor and its peers, in one run.

``python -m benchmarks [THEME ...]`` measures and writes ``benchmarks/results``. There is one file
per theme (``themes/``), on what they share: :mod:`~benchmarks.harness` (timing),
:mod:`~benchmarks.roofline` (what the memory allows), :mod:`~benchmarks.workloads` and
:mod:`~benchmarks.steps` (what is measured), :mod:`~benchmarks.results` (tables and files). Other
implementations are in :mod:`~benchmarks.peers`, whose :mod:`~benchmarks.peers.equivalence` compares
their update with ours.
"""
