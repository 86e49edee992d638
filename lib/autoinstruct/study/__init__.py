"""What only the notebook and the benchmark of Auto-Instruct need: the suite of tasks, recorded replies, rivals, peers."""
