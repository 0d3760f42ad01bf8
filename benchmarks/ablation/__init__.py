"""Which settings of transfer localise best, chosen on training classes alone."""
