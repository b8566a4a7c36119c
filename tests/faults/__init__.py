"""Faults by the dozen, as scripts: kills, full disks, flipped bits. The suite has a few of each."""
