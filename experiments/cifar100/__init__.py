"""Real CIFAR-100 through the streaming path: a teacher, then a student distilled from it."""
