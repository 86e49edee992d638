"""What only TempSpec's notebook and benchmark need: prompts, the drafters trained, costs, peers."""
