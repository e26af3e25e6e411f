"""Arrays as programs need them: casts that keep finite values finite, and placements."""
