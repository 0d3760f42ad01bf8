"""The ablation study of transferred weights, chosen on training classes alone."""
