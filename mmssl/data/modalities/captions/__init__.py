"""What becomes of captions when their sample is transformed: sides, order, and the words that decide."""
