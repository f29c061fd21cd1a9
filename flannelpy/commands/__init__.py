"""What does a subcommand do? `cli` declares them, a module here each carries one out."""
