"""A run to one HTML page: report collects sections, page renders them.

prompt_predictions and image_predictions are sections by stage, mistakes what both share, charts the drawings.
"""
