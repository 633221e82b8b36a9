"""The same sweeps by this package, its peers and by hand, side by side: run by benchmarks/sweeps.py."""
