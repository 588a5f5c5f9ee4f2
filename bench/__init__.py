"""Measurements, side by side with peers; everything in a table was measured in one run, in turn.

    python -m bench.throughput --minutes 15 [--write]                   views/s, images/s, the limit, peak memory
    python -m bench.learning --algorithm byol --minutes 5 [--write]     equal time for ours and lightly: kNN, linear probe

The peer comes with ``pip install -e ".[bench]"``; without it the rest is measured. ``--write`` adds a section to
bench/RESULTS.md.
"""
