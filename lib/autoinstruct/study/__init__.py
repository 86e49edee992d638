"""What only the notebook and the benchmark of Auto-Instruct need: tasks, recorded replies, rivals, peers."""
