"""What `benchmarks/gpu.py` is made of: `bench` holds what is measured and on what, `kernels` and `models` measure,
`table` shows it."""
