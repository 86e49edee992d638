"""What only LoRC's notebook and benchmark need: error bounds, measures of compressed models, peers."""
