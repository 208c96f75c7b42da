"""Commands of stages 2 and 3: training and recognition; options are what they share.

starts finds what a training starts from.
"""
