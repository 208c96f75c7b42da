"""Photos to random rectangles to an ORP bank."""
