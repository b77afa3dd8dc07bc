"""What `benchmarks/scale.py` and `scale_check.py` simulate: a fleet of engines, as a fluid between discrete events.

`world` says what is simulated; `node` holds machines, their nodes and what works on them; `cache` the characters that a
node keeps; `routing` who is sent where; `simulate` runs it; `workers` are real engines for the same arrivals.
"""
