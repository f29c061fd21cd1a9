"""What is going on, and why? Everything that tells: over HTTP, on a socket, on a terminal. Nothing here changes the host."""
