"""Tasks with known answers in the place of text: what an architecture can do, at the cost of minutes."""
