"""From tokens to a fine-tuned model."""
