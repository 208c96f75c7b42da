"""A run to one HTML page: report collects sections, page renders them and draws charts.

predictions makes the sections on what a run reads, with attention maps of crops.
"""
