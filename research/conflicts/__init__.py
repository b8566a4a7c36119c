"""The conflict study: conflict counts, cosines against their noise, and what surgery changes.

`python -m research.conflicts` trains, probes, simulates, and writes conflicts.md with its pictures.
Each piece of the work is one JSON file, from which `page.write(directory)` writes the page again.
"""
