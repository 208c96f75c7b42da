"""Where to start: what a machine can do (doctor), and the command that adapts a recogniser to one's data (look)."""
