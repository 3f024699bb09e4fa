"""What others get to see: the model card and the Hub."""
