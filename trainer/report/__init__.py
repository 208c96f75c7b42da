"""A run to one HTML page: report collects sections, page renders them.

prompt_readings and image_readings are sections by stage, mistakes what both share, charts the drawings.
"""
