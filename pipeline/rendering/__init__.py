"""Words to labelled synthetic crops.

render_words is the step. word_lists and fonts choose word and font, shaping finds words that need a font's shaping
rules; crop draws one picture by the strengths in style, with letters as masks; like imitates given crops. demo_data
makes the data of ``dptr demo``.
"""
