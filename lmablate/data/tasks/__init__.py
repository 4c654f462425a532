"""Tasks with known answers instead of text, which test an architecture's abilities in minutes."""
