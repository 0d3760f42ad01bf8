"""Settings, files and seeds, which all parts of the benchmarks use."""
