"""Training of an embedding network with a triplet loss."""
