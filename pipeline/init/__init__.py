"""The first commands: `doctor` examines a machine, `init` inspects a user's data and prints the command to run."""
