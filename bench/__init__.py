"""Side-by-side benchmarks of promptbus: `make bench`. Never packaged."""
