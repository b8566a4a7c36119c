"""The themes of the benchmarks, one file each."""
