"""Leases that are Kubernetes' nodes: the codec and the book are pure, ``client`` alone imports lightkube."""
