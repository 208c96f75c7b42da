"""Photos to an ORP bank: random rectangles through CLIP's image encoder.

Start at build_orp_bank with its orp_settings. photo_files and archives find photos (photo), reader reads one and crops
cuts it; near_images keeps a benchmark's images out, seen_photos what earlier runs have read from being read again.
"""
