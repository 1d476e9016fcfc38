"""Side-by-side timings. Absolute times drift; ratios of interleaved runs are what can be compared."""
