"""Commands of stages 2 and 3: training, recognition and ablation; options are what they share.

starts finds what a training starts from.
"""
