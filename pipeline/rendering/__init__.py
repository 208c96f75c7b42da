"""Words to labelled crops: fonts, letters, styles."""
