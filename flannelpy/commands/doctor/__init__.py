"""What is wrong with this host? Checks that need no agent, and do not stop each other; one module a subject."""
