"""Ablations: arms x seeds from one file, compared in pairs.

grid is the file, arms makes trials of it with their crops, ablate runs them (trial, side_by_side, remembered) and
keeps rows; comparison and statistics compare arms, table prints them.
"""
