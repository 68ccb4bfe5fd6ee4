"""What is fed: is it what the model expects, and in which order does it come."""
