"""Arrays as programs need them: casts that keep values finite, and placements."""
