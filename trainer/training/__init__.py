"""The one training loop and what a run keeps on disk.

settings and recipe are what a run is asked for, runs its folder, summary what it came to. loop takes a task: batches
(loader) and steps (schedule, averaging, state), shared out between processes, begun where resuming says. Between steps,
recording writes checkpoints (checkpoint) and log lines (step_log), and shows them elsewhere (trackers).
"""
