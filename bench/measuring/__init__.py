"""Counting from outside: processes' CPU and memory, Triton's own statistics, the broker's offsets, latency."""
