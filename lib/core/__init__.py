"""What several rooms need, written once: the lowest layer, which imports nothing of ours but `lib`."""
