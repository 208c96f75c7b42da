"""Ablations: arms x seeds from one file, run one after another or side by side, and compared in pairs."""
