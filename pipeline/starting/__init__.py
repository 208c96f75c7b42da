"""Before the first stage: what a machine can do, and what somebody's data ask for."""
