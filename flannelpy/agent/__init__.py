"""What runs: the registry's side (cluster, keeper), the kernel's side (reconcile), and where they are put together (agent)."""
