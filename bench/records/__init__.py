"""What a benchmark keeps: where it ran, its samples, what follows from them, and how two stored results compare."""
