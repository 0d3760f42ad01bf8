"""Settings, files and seeds: what every room uses."""
