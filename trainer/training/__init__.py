"""The one training loop and what a run keeps on disk.

loop takes a task: batches and a loss, split between processes. It saves its state (checkpoint) and adds to the log
(step_log) between steps. runs describes a run's folder.
"""
