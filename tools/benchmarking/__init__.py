"""What tools/benchmark.py and tools/costs.py are made of."""
