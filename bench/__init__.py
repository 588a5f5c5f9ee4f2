"""Measurements next to other frameworks. All rows of a table are measured in one run; the contestants take turns.

    python -m bench.throughput --minutes 15 [--write]                   views/s, images/s, the upper limit, peak memory
    python -m bench.learning --algorithm byol --minutes 5 [--write]     equal time for superself and lightly: kNN, linear probe
    python -m bench.byol_batch_norm --minutes 3 [--write]               what batch norm in the heads does to BYOL

lightly is installed by ``pip install -e ".[bench]"``; without it only superself is measured. ``--write`` appends a section
to bench/RESULTS.md.
"""
