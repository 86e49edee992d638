"""SeqBoat's experiments: tasks, recipes, training, what it is compared with, probes and benchmarks."""
