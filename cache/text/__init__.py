"""Labels as text: charsets, normalisation, units (code points or grapheme clusters), reading order, the lexicon."""
