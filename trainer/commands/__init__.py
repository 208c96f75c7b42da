"""Commands of stages 2 and 3."""
