"""What does a subcommand do? ``cli`` only declares them."""
