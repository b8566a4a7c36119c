"""Benchmarks: what surgery costs, beside plain training, its floor and its peers, in one run.

``python -m benchmarks [THEME ...]`` measures and writes ``benchmarks/results``. A theme is a file
in :mod:`~benchmarks.themes` that declares what is measured and how it is shown;
:mod:`~benchmarks.harness` runs it, on :mod:`~benchmarks.timing` (candidates in turn) and
:mod:`~benchmarks.roofline` (what the memory allows). What the cases are made of:
:mod:`~benchmarks.problems` (models, batches, gradients), :mod:`~benchmarks.steps` (training steps),
:mod:`~benchmarks.peers` (other implementations, and whether their update equals ours).
"""
