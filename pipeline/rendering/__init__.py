"""Words to labelled synthetic crops.

Start at render_words. word_lists and fonts choose word and font (shaping knows which words need a font's rules, and
which fonts have them), crop draws one picture by the strengths in style, with letters as masks. demo_data prepares what
``dptr demo`` works on.
"""
