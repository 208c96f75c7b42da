"""The one training loop and what a run keeps on disk.

loop takes a task: batches (loader) and steps (state), split between processes. It writes checkpoints (checkpoint) and
log lines (step_log) between steps. runs describes a run's folder.
"""
