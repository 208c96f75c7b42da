"""Commands of stages 2 and 3: training makes runs, recognition uses them; options are what they share."""
